"""Options that the commands of `aalnet deploy` share, and how they speak."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aalnet.errors import UserError
from cluster.view.progress import printable
from deploy.operator.api import KubernetesApi, connect
from deploy.operator.objects import Component
from deploy.operator.options import check_namespace
from deploy.operator.render import NAMES

ComponentName = Annotated[
    Component, typer.Argument(help="trainer, campaign or endpoint", metavar="COMPONENT")
]
Overlay = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(NAMES)}, or a folder of yours", envvar="AALNET_OVERLAY",
        metavar="NAME|FOLDER",
    ),
]  # fmt: skip
Image = Annotated[str | None, typer.Option(help="of every pod", metavar="NAME:TAG")]
Name = Annotated[
    str | None,
    typer.Option(help="of the objects, and of the run or campaign; default: the overlay's"),
]
Config = Annotated[
    Path | None,
    typer.Option(help="settings or campaign file in place of the overlay's", metavar="FILE"),
]
Workers = Annotated[
    str | None, typer.Option(help="training workers, or endpoint pods", metavar="N|MIN:MAX")
]
Storage = Annotated[
    str | None, typer.Option(help="s3://bucket/prefix; default: the overlay's", metavar="URI")
]
Model = Annotated[str | None, typer.Option(help="promoted model that the endpoint follows")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="default: the overlay's, aalnet")
]
Context = Annotated[str | None, typer.Option(help="of the kubeconfig; default: the current one")]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config", metavar="FILE")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


def open_api(context: str | None, kubeconfig: Path | None, namespace: str | None) -> KubernetesApi:
    """The cluster of these options; its warnings go to standard error."""
    check_namespace(namespace)
    return connect(context, kubeconfig, lambda text: tell(f"warning: {text}"))


def tell(text: str) -> None:
    """A line for the person, beside what a script reads."""
    print(printable(text), file=sys.stderr, flush=True)


def at_a_terminal() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> bool:
    """Whether the person agrees.

    Raises:
        UserError: nobody is there to ask.
    """
    if yes:
        return True
    if not at_a_terminal():
        raise UserError("nothing was changed: there is no terminal to ask at; give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")

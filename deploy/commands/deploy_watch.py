"""`aalnet deploy status | logs | doctor`: what only looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.commands.options import Json
from cluster.view.checks import print_checks
from cluster.view.progress import duration, printable, progress_of
from deploy.commands.deploy_options import (
    ComponentName,
    Context,
    Kubeconfig,
    Name,
    Namespace,
    Overlay,
    cluster_of,
)
from deploy.operator.api import Cluster
from deploy.operator.arguments import check_name
from deploy.operator.doctor import checks
from deploy.operator.errors import Missing
from deploy.operator.logs import Follower, Source
from deploy.operator.look import look
from deploy.operator.objects import (
    COMPONENTS,
    INSTANCE,
    JOBS,
    KINDS,
    NAMESPACE,
    PART,
    SERVERS,
    Component,
    Object,
    default_name,
    title,
)

INTERRUPTED = 130
PIPED_WIDTH = 200
COLUMNS = ("component", "object", "status", "pods", "images", "age", "why")
OUTCOMES = {"done": "green", "failed": "red", "going": "blue"}


def status(
    component: Annotated[
        Component | None,
        typer.Argument(help="trainer, campaign or endpoint; default: all", metavar="COMPONENT"),
    ] = None,
    name: Name = None, namespace: Namespace = None, context: Context = None,
    kubeconfig: Kubeconfig = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what there is, how it does, and why it waits. Exit code 1 where something has failed."""
    check_name("--name", name)
    cluster = cluster_of(context, kubeconfig, namespace)
    chosen = (component,) if component else COMPONENTS
    rows = [
        _row(cluster, part, item)
        for part in chosen
        for item in _workloads(cluster, part, namespace or NAMESPACE, name)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _print_table(rows)
    else:
        print(f"nothing in {namespace or NAMESPACE}; aalnet deploy apply COMPONENT --overlay NAME")
    if any(row["outcome"] == "failed" for row in rows):
        raise typer.Exit(1)


def logs(
    component: ComponentName, name: Name = None, namespace: Namespace = None,
    context: Context = None, kubeconfig: Kubeconfig = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until it ends, across lost connections")
    ] = False,
    of: Annotated[
        Source | None,
        typer.Option(help="driver, head, worker or endpoint; default: driver or endpoint"),
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="only so many lines of the past")] = None,
) -> None:  # fmt: skip
    """Print the logs of a job's driver, its head or workers, or of the endpoint's pods."""
    check_name("--name", name)
    cluster = cluster_of(context, kubeconfig, namespace)
    called, space = name or default_name(component), namespace or NAMESPACE
    found = _workloads(cluster, component, space, called)
    if not found:
        raise Missing(f"there is no {component} {called} in {space}; aalnet deploy status")
    source: Source = of or ("driver" if found[0]["kind"] in JOBS else "endpoint")
    several = source in ("worker", "endpoint")

    def write(pod: str, text: str) -> None:
        print(f"{pod}  {text}" if several else text, flush=True)

    reader = Follower(cluster, found[0], source, write)
    if not follow:
        reader.show(tail)
        return
    try:
        reader.follow(tail)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def doctor(
    overlay: Overlay = "aws", namespace: Namespace = None, context: Context = None,
    kubeconfig: Kubeconfig = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Check the cluster and what you may do there. Exit code 1 if a check fails."""
    cluster = cluster_of(context, kubeconfig, namespace)
    print_checks(checks(cluster, namespace or NAMESPACE, overlay), as_json)


def _workloads(
    cluster: Cluster, component: Component, namespace: str, name: str | None
) -> list[Object]:
    return list(_found(cluster, component, namespace, name))


def _found(
    cluster: Cluster, component: Component, namespace: str, name: str | None
) -> Iterator[Object]:
    labels = {PART: component} | ({INSTANCE: name} if name else {})
    for kind in SERVERS if component == "endpoint" else JOBS:
        try:
            yield from cluster.list(KINDS[kind], kind, namespace, labels)
        except Missing:  # the endpoint's Deployment needs no KubeRay
            if kind != "RayService":
                raise


def _row(cluster: Cluster, component: Component, item: Object) -> dict[str, Any]:
    view = look(cluster, item)
    made = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    return {
        "component": component,
        "object": title(item),
        "status": view.state.status,
        "outcome": view.state.outcome,
        "pods": view.pods,
        "images": list(view.images) if view.images else None,
        "age_s": round((datetime.now(UTC) - made).total_seconds()),
        "why": [view.state.reason, *view.waiting] if view.state.reason else list(view.waiting),
        "log": view.said,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        images = progress_of(*row["images"]) if row["images"] else ""
        table.add_row(
            row["component"], row["object"], Text(row["status"], style=OUTCOMES[row["outcome"]]),
            row["pods"], images, duration(row["age_s"]), printable("; ".join(row["why"])),
        )  # fmt: skip
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)

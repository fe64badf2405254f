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
    open_api,
)
from deploy.operator.api import KubernetesApi
from deploy.operator.doctor import checks
from deploy.operator.errors import NotFound
from deploy.operator.logs import LogSource, LogStream
from deploy.operator.objects import (
    COMPONENT_LABEL,
    COMPONENTS,
    INSTANCE_LABEL,
    JOB_KINDS,
    NAMESPACE,
    SERVER_KINDS,
    Component,
    Object,
    default_name,
    title,
)
from deploy.operator.options import check_name
from deploy.operator.status import workload_status

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
    api = open_api(context, kubeconfig, namespace)
    rows = [
        _row(api, each, item)
        for each in ((component,) if component else COMPONENTS)
        for item in _workloads(api, each, namespace or NAMESPACE, name)
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
        LogSource | None,
        typer.Option(help="driver, head, worker or endpoint; default: driver or endpoint"),
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="only so many lines of the past")] = None,
) -> None:  # fmt: skip
    """Print the logs of a job's driver, its head or workers, or of the endpoint's pods."""
    check_name("--name", name)
    api = open_api(context, kubeconfig, namespace)
    name, namespace = name or default_name(component), namespace or NAMESPACE
    workload = next(_workloads(api, component, namespace, name), None)
    if workload is None:
        raise NotFound(f"there is no {component} {name} in {namespace}; aalnet deploy status")
    source: LogSource = of or ("driver" if workload["kind"] in JOB_KINDS else "endpoint")
    several = source in ("worker", "endpoint")

    def write(pod: str, text: str) -> None:
        print(f"{pod}  {text}" if several else text, flush=True)

    stream = LogStream(api, workload, source, write)
    if not follow:
        stream.show(tail)
        return
    try:
        stream.follow(tail)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def doctor(
    overlay: Overlay = "aws", namespace: Namespace = None, context: Context = None,
    kubeconfig: Kubeconfig = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Check the cluster and what you may do there. Exit code 1 if a check fails."""
    api = open_api(context, kubeconfig, namespace)
    print_checks(checks(api, namespace or NAMESPACE, overlay), as_json)


def _workloads(
    api: KubernetesApi, component: Component, namespace: str, name: str | None
) -> Iterator[Object]:
    labels = {COMPONENT_LABEL: component} | ({INSTANCE_LABEL: name} if name else {})
    for kind in SERVER_KINDS if component == "endpoint" else JOB_KINDS:
        try:
            yield from api.find_all(kind, namespace, labels)
        except NotFound:  # the endpoint's Deployment needs no KubeRay
            if kind != "RayService":
                raise


def _row(api: KubernetesApi, component: Component, item: Object) -> dict[str, Any]:
    status = workload_status(api, item)
    created = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    reason = status.state.reason
    return {
        "component": component,
        "object": title(item),
        "status": status.state.status,
        "outcome": status.state.outcome,
        "pods": status.pods,
        "images": list(status.images) if status.images else None,
        "age_s": round((datetime.now(UTC) - created).total_seconds()),
        "why": [*([reason] if reason else []), *status.waiting],
        "log": status.log_line,
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

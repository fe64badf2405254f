"""`aalnet deploy render | apply | delete`: what changes a cluster, each shown before it is done."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cluster.commands.options import Json, Set
from deploy.commands.deploy_options import (
    ComponentName,
    Config,
    Context,
    Image,
    Kubeconfig,
    Model,
    Name,
    Namespace,
    Overlay,
    Storage,
    Workers,
    Yes,
    agreed,
    cluster_of,
    tell,
)
from deploy.operator import removal
from deploy.operator.api import Cluster
from deploy.operator.arguments import Changes, check_name
from deploy.operator.changes import blanks, changed
from deploy.operator.errors import ClusterError, ManifestError
from deploy.operator.execute import execute
from deploy.operator.look import View
from deploy.operator.objects import (
    JOBS,
    NAMESPACE,
    Component,
    Object,
    default_name,
    title,
    workload,
)
from deploy.operator.plan import Step, plan
from deploy.operator.render import render as rendered
from deploy.operator.text import as_yaml
from deploy.operator.waiting import Lines, views

SERVER_TIMEOUT_S = 900.0  # of an endpoint; a job may take days, and has deadlines of its own
DECLINED, INTERRUPTED = 1, 130
SHOWN_BLANKS = 4
COLOURS = {"+": "green", "-": "red", "@": "cyan"}
WORDS = {"create": "new", "change": "changed", "replace": "replaced", "keep": "unchanged"}


def render(
    component: ComponentName, overlay: Overlay, image: Image = None, name: Name = None,
    overrides: Set = None, config: Config = None, workers: Workers = None,
    storage: Storage = None, model: Model = None, namespace: Namespace = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Print the manifests that `apply` would send. Needs no cluster."""
    asked = Changes(image, name, overrides or (), config, workers, storage, model, namespace)
    objects = changed(rendered(overlay, component), component, asked)
    for blank in blanks(objects):
        tell(f"warning: fill in {blank}")
    if as_json:
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
    else:
        print(as_yaml(objects), end="")


def apply(
    component: ComponentName, overlay: Overlay, image: Image = None, name: Name = None,
    overrides: Set = None, config: Config = None, workers: Workers = None,
    storage: Storage = None, model: Model = None, namespace: Namespace = None,
    context: Context = None, kubeconfig: Kubeconfig = None, yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the difference")] = False,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="take fields over from other managers")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return once it is taken")] = False,
    timeout_s: Annotated[
        float | None,
        typer.Option(min=1, help="of waiting; default: 900 for an endpoint, none for a job"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show what would change, ask, apply it, and wait until it is done.

    Exit codes: 0 done, 1 failed or declined, 2 a mistake, 3 not done in time, 4 fields that another
    manager owns, 130 Ctrl-C. The same command again goes on from where it was.
    """
    asked = Changes(image, name, overrides or (), config, workers, storage, model, namespace)
    objects = changed(rendered(overlay, component), component, asked)
    _refuse_blanks(objects)
    cluster = cluster_of(context, kubeconfig, namespace)
    steps = plan(cluster, objects, force=force)
    _show(steps, Console(stderr=as_json, highlight=False, soft_wrap=True))
    to_do = [step for step in steps if step.action != "keep"]
    done = False
    if to_do and not dry_run:
        counts = Counter(WORDS[step.action] for step in to_do)
        summary = ", ".join(f"{count} {word}" for word, count in counts.items())
        if not agreed(f"apply this to {cluster.address} ({summary})?", yes=yes):
            tell("nothing was changed")
            raise typer.Exit(DECLINED)
        execute(cluster, to_do, tell, force=force)
        done = True
    view = None if dry_run or no_wait else _wait(cluster, workload(objects), component, timeout_s)
    if as_json:
        print(json.dumps(_answer(steps, workload(objects), view, applied=done)))


def delete(
    component: ComponentName, name: Name = None, namespace: Namespace = None,
    context: Context = None, kubeconfig: Kubeconfig = None, yes: Yes = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Delete what `apply` made, and nothing else: runs, models and the namespace stay."""
    check_name("--name", name)
    cluster = cluster_of(context, kubeconfig, namespace)
    space, called = namespace or NAMESPACE, name or default_name(component)
    found = removal.found(cluster, component, space, called)
    for item in found.others:
        tell(f"{title(item)} stays: `aalnet deploy` did not make it")
    if found.ours:
        tell(f"to be deleted in {space}: {', '.join(title(item) for item in found.ours)}")
        if not agreed(f"delete this from {cluster.address}?", yes=yes):
            tell("nothing was changed")
            raise typer.Exit(DECLINED)
        removal.remove(cluster, found.ours, tell)
    else:
        tell(f"there is no {component} {called} of ours in {space}")
    if as_json:
        print(json.dumps({
            "deleted": [title(item) for item in found.ours],
            "kept": [title(item) for item in found.others],
        }))  # fmt: skip


def _refuse_blanks(objects: Sequence[Object]) -> None:
    if left := blanks(objects):
        more = f" and {len(left) - SHOWN_BLANKS} more" if len(left) > SHOWN_BLANKS else ""
        raise ManifestError(
            f"to be filled in first: {'; '.join(left[:SHOWN_BLANKS])}{more}. Give --image and "
            "--storage, or change the overlay"
        )


def _show(steps: Sequence[Step], console: Console) -> None:
    for step in steps:
        why = f": {step.why}" if step.why else ""
        console.print(Text(f"{title(step.item)} {WORDS[step.action]}{why}", style="bold"))
        for line in step.lines:
            console.print(Text(line, style=COLOURS.get(line[:1], "")))


def _wait(cluster: Cluster, item: Object, component: Component, timeout_s: float | None) -> View:
    """Until it is done. Raises ClusterError where it has failed, TimedOut where it takes longer."""
    metadata = item["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    if timeout_s is None and item["kind"] not in JOBS:
        timeout_s = SERVER_TIMEOUT_S
    where = f"{component} --name {name} --namespace {namespace}"
    lines = Lines(title(item), tell)
    try:
        live = cluster.get(item["apiVersion"], item["kind"], namespace, name)
        for view in views(cluster, live, timeout_s):
            lines.show(view)
    except KeyboardInterrupt:
        tell(f"detached; it goes on in the cluster: aalnet deploy logs {where} --follow")
        sys.exit(INTERRUPTED)
    if view.state.outcome == "failed":
        why = "; ".join([view.state.reason or view.state.status, *view.waiting])
        raise ClusterError(f"{title(item)} has failed: {why}; aalnet deploy logs {where}")
    return view


def _answer(
    steps: Sequence[Step], item: Object, view: View | None, *, applied: bool
) -> dict[str, object]:
    return {
        "workload": title(item),
        "namespace": item["metadata"]["namespace"],
        "applied": applied,
        "objects": {title(step.item): WORDS[step.action] for step in steps},
        "status": view.state.status if view else None,
        "outcome": view.state.outcome if view else None,
        "images": view.images[0] if view and view.images else None,
    }

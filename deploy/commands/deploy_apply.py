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
    confirm,
    open_api,
    tell,
)
from deploy.operator.api import KubernetesApi
from deploy.operator.diff import as_yaml
from deploy.operator.edits import blanks, edit_manifests
from deploy.operator.errors import KubernetesError, ManifestError
from deploy.operator.execute import apply_changes, deletable, delete_objects
from deploy.operator.objects import (
    JOB_KINDS,
    NAMESPACE,
    Component,
    Object,
    default_name,
    title,
    workload,
)
from deploy.operator.options import DeployOptions, check_name
from deploy.operator.plan import PlannedChange, plan_changes
from deploy.operator.render import render as render_overlay
from deploy.operator.status import WorkloadStatus
from deploy.operator.wait import StatusLines, statuses

SERVER_TIMEOUT_S = 900.0  # of an endpoint; a job may take days, and has deadlines of its own
DECLINED, INTERRUPTED = 1, 130
MAX_BLANKS = 4
COLOURS = {"+": "green", "-": "red", "@": "cyan"}
WORDS = {"create": "new", "change": "changed", "replace": "replaced", "keep": "unchanged"}


def render(
    component: ComponentName, overlay: Overlay, image: Image = None, name: Name = None,
    overrides: Set = None, config: Config = None, workers: Workers = None,
    storage: Storage = None, model: Model = None, namespace: Namespace = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Print the manifests that `apply` would send. Needs no cluster."""
    options = DeployOptions(
        image, name, overrides or (), config, workers, storage, model, namespace
    )
    objects = edit_manifests(render_overlay(overlay, component), component, options)
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
    options = DeployOptions(
        image, name, overrides or (), config, workers, storage, model, namespace
    )
    objects = edit_manifests(render_overlay(overlay, component), component, options)
    _refuse_blanks(objects)
    api = open_api(context, kubeconfig, namespace)
    plan = plan_changes(api, objects, force=force)
    _show(plan, Console(stderr=as_json, highlight=False, soft_wrap=True))
    counts = Counter(WORDS[change.action] for change in plan if change.action != "keep")
    applied = bool(counts) and not dry_run
    if applied:
        summary = ", ".join(f"{count} {word}" for word, count in counts.items())
        _confirm_or_exit(f"apply this to {api.address} ({summary})?", yes=yes)
        apply_changes(api, plan, tell, force=force)
    status = None if dry_run or no_wait else _wait(api, workload(objects), component, timeout_s)
    if as_json:
        print(json.dumps(_answer(plan, workload(objects), status, applied=applied)))


def delete(
    component: ComponentName, name: Name = None, namespace: Namespace = None,
    context: Context = None, kubeconfig: Kubeconfig = None, yes: Yes = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Delete what `apply` made, and nothing else: runs, models and the namespace stay."""
    check_name("--name", name)
    api = open_api(context, kubeconfig, namespace)
    namespace, name = namespace or NAMESPACE, name or default_name(component)
    ours, others = deletable(api, component, namespace, name)
    for item in others:
        tell(f"{title(item)} stays: `aalnet deploy` did not make it")
    titles = [title(item) for item in ours]
    if ours:
        tell(f"to be deleted in {namespace}: {', '.join(titles)}")
        _confirm_or_exit(f"delete this from {api.address}?", yes=yes)
        delete_objects(api, ours, tell)
    else:
        tell(f"there is no {component} {name} of ours in {namespace}")
    if as_json:
        print(json.dumps({"deleted": titles, "kept": [title(item) for item in others]}))


def _refuse_blanks(objects: Sequence[Object]) -> None:
    if lines := blanks(objects):
        more = f" and {len(lines) - MAX_BLANKS} more" if len(lines) > MAX_BLANKS else ""
        raise ManifestError(
            f"to be filled in first: {'; '.join(lines[:MAX_BLANKS])}{more}. Give --image and "
            "--storage, or change the overlay"
        )


def _confirm_or_exit(question: str, *, yes: bool) -> None:
    if not confirm(question, yes=yes):
        tell("nothing was changed")
        raise typer.Exit(DECLINED)


def _show(plan: Sequence[PlannedChange], console: Console) -> None:
    for change in plan:
        why = f": {change.why}" if change.why else ""
        console.print(Text(f"{title(change.item)} {WORDS[change.action]}{why}", style="bold"))
        for line in change.diff:
            console.print(Text(line, style=COLOURS.get(line[:1], "")))


def _wait(
    api: KubernetesApi, item: Object, component: Component, timeout_s: float | None
) -> WorkloadStatus:
    """Until it is done. Raises KubernetesError where it has failed, TimedOut where it is late."""
    metadata = item["metadata"]
    if timeout_s is None and item["kind"] not in JOB_KINDS:
        timeout_s = SERVER_TIMEOUT_S
    where = f"{component} --name {metadata['name']} --namespace {metadata['namespace']}"
    lines = StatusLines(title(item), tell)
    try:
        for status in statuses(api, item, timeout_s):
            lines.show(status)
    except KeyboardInterrupt:
        tell(f"detached; it goes on in the cluster: aalnet deploy logs {where} --follow")
        sys.exit(INTERRUPTED)
    if status.state.outcome == "failed":
        why = "; ".join([status.state.reason or status.state.status, *status.waiting])
        raise KubernetesError(f"{title(item)} has failed: {why}; aalnet deploy logs {where}")
    return status


def _answer(
    plan: Sequence[PlannedChange], item: Object, status: WorkloadStatus | None, *, applied: bool
) -> dict[str, object]:
    return {
        "workload": title(item),
        "namespace": item["metadata"]["namespace"],
        "applied": applied,
        "objects": {title(change.item): WORDS[change.action] for change in plan},
        "status": status.state.status if status else None,
        "outcome": status.state.outcome if status else None,
        "images": status.images[0] if status and status.images else None,
    }

"""What an apply would change: each object's server-side dry run beside what is there now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.operator.api import Cluster
from deploy.operator.errors import ClusterError, Conflict, ManifestError, Missing
from deploy.operator.objects import JOBS, PART, Object, title
from deploy.operator.state import state_of
from deploy.operator.text import difference

Action = Literal["create", "change", "replace", "keep"]


@dataclass(frozen=True)
class Step:
    """One object as it is asked for, as it is (None: not there) and as it would be."""

    item: Object
    live: Object | None
    result: Object
    action: Action
    why: str = ""

    @property
    def lines(self) -> list[str]:
        """The difference, as a unified diff."""
        return difference(self.live, self.result, title(self.item))


def plan(cluster: Cluster, objects: Sequence[Object], *, force: bool = False) -> list[Step]:
    """Ask the server what each object would become. Changes nothing.

    Raises:
        Conflict: fields belong to other managers; all of them are named.
        ManifestError: the cluster refuses an object, or the name is another component's.
    """
    steps, conflicts = [], []
    for item in objects:
        try:
            steps.append(_step(cluster, item, force=force))
        except Conflict as error:
            conflicts.append(str(error))
    if conflicts:
        raise Conflict(
            f"{'; '.join(conflicts)}. Nothing was changed; take them over with --force-conflicts, "
            "or leave them out of the overlay"
        )
    return [_job_step(step, steps) if step.item["kind"] in JOBS else step for step in steps]


def _step(cluster: Cluster, item: Object, *, force: bool) -> Step:
    metadata = item["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    live = cluster.find(item["apiVersion"], item["kind"], namespace, name)
    if live is not None:
        _check_same_component(live, item)
    try:
        result = cluster.apply(item, dry_run=True, force=force)
    except Missing as error:
        if "namespaces" not in str(error):
            raise
        raise ClusterError(
            f"namespace {namespace} is missing; an administrator makes it: kubectl apply "
            "--server-side -k deploy/kubernetes/overlays/OVERLAY/around"
        ) from error
    if live is None:
        return Step(item, None, result, "create")
    action: Action = "change" if difference(live, result, "") else "keep"
    return Step(item, live, result, action)


def _check_same_component(live: Object, item: Object) -> None:
    was = live["metadata"].get("labels", {}).get(PART)
    if was != item["metadata"]["labels"].get(PART):
        raise ManifestError(
            f"{title(item)} exists and is {f'a {was}' if was else 'none of ours'}; choose another "
            "--name"
        )


def _job_step(step: Step, steps: Sequence[Step]) -> Step:
    """KubeRay reads a RayJob once: another spec, other settings or another try need a new one."""
    if step.live is None:
        return step
    state = state_of(step.live)
    differs = any(each.action in ("create", "change") for each in steps)
    if state.status == "Deleting":
        why = "it is being deleted"
    elif state.outcome == "failed":
        why = f"it has failed ({state.reason or state.status})"
    elif differs and state.outcome == "done":
        why = "it is done, and would differ"
    elif differs:
        why = "it runs with other settings: it is stopped, and saves a checkpoint first"
    else:
        return step
    return Step(step.item, step.live, step.result, "replace", why)

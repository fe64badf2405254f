"""What an apply would change: each object's server-side dry run beside what is there now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deploy.operator.api import KubernetesApi
from deploy.operator.diff import difference
from deploy.operator.errors import FieldConflict, KubernetesError, ManifestError, NotFound
from deploy.operator.objects import COMPONENT_LABEL, JOB_KINDS, Object, title
from deploy.operator.status import controller_state


@dataclass(frozen=True)
class PlannedChange:
    """One object of the manifests, as it is (None: not there) and as it would be."""

    item: Object
    live: Object | None
    result: Object
    action: Literal["create", "change", "replace", "keep"]
    why: str = ""

    @property
    def diff(self) -> list[str]:
        """The difference, as a unified diff."""
        return difference(self.live, self.result, title(self.item))


def plan_changes(
    api: KubernetesApi, objects: Sequence[Object], *, force: bool = False
) -> list[PlannedChange]:
    """Ask the server what each object would become. Changes nothing.

    Raises:
        FieldConflict: fields belong to other managers; all of them are named.
        ManifestError: the cluster refuses an object, or the name is another component's.
    """
    changes, conflicts = [], []
    for item in objects:
        try:
            changes.append(_plan_change(api, item, force=force))
        except FieldConflict as error:
            conflicts.append(str(error))
    if conflicts:
        raise FieldConflict(
            f"{'; '.join(conflicts)}. Nothing was changed; take them over with --force-conflicts, "
            "or leave them out of the overlay"
        )
    differs = any(change.action in ("create", "change") for change in changes)
    return [_plan_job(change, differs=differs) if change.item["kind"] in JOB_KINDS else change
            for change in changes]  # fmt: skip


def _plan_change(api: KubernetesApi, item: Object, *, force: bool) -> PlannedChange:
    live = api.find_again(item)
    if live is not None:
        _check_same_component(live, item)
    try:
        result = api.apply(item, dry_run=True, force=force)
    except NotFound as error:
        if "namespaces" not in str(error):
            raise
        raise KubernetesError(
            f"namespace {item['metadata']['namespace']} is missing; an administrator makes it: "
            "kubectl apply --server-side -k deploy/kubernetes/overlays/OVERLAY/around"
        ) from error
    if live is None:
        return PlannedChange(item, None, result, "create")
    differs = bool(difference(live, result, ""))
    return PlannedChange(item, live, result, "change" if differs else "keep")


def _check_same_component(live: Object, item: Object) -> None:
    component = live["metadata"].get("labels", {}).get(COMPONENT_LABEL)
    if component != item["metadata"]["labels"].get(COMPONENT_LABEL):
        owner = f"a {component}" if component else "none of ours"
        raise ManifestError(f"{title(item)} exists and is {owner}; choose another --name")


def _plan_job(change: PlannedChange, *, differs: bool) -> PlannedChange:
    """KubeRay reads a RayJob once: another spec, other settings or another try need a new one."""
    if change.live is None:
        return change
    state = controller_state(change.live)
    if state.status == "Deleting":
        why = "it is being deleted"
    elif state.outcome == "failed":
        why = f"it has failed ({state.reason or state.status})"
    elif differs and state.outcome == "done":
        why = "it is done, and would differ"
    elif differs:
        why = "it runs with other settings: it is stopped, and saves a checkpoint first"
    else:
        return change
    return replace(change, action="replace", why=why)

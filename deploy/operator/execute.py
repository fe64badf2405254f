"""Carries out a plan, and deletes what it made. What was shown is what is done, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from deploy.operator.api import KubernetesApi
from deploy.operator.diff import without_server_fields
from deploy.operator.errors import NotFound, ObjectChanged, TimedOut
from deploy.operator.objects import (
    COMPONENT_KINDS,
    COMPONENT_LABEL,
    INSTANCE_LABEL,
    JOB_KINDS,
    MANAGED_BY_LABEL,
    MANAGER,
    SERVER_KINDS,
    Component,
    Object,
    title,
)
from deploy.operator.plan import PlannedChange

TRIES = 5  # controllers write to objects all the time: a new version of the same is no change
DELETION_TIMEOUT_S = 300.0  # a head saves a checkpoint, and KubeRay takes its cluster away
POLL_S = 1.0


def apply_changes(
    api: KubernetesApi, changes: Sequence[PlannedChange], tell: Callable[[str], None], *,
    force: bool = False,
) -> None:  # fmt: skip
    """Apply what a plan says, jobs to be replaced first out of the way. The same again is safe.

    Raises:
        ObjectChanged: an object has become another since it was shown.
        TimedOut: a job to be replaced does not go.
    """
    for change in changes:  # before its settings change: a retry of KubeRay's would read them
        if change.action == "replace" and change.live is not None:
            tell(f"delete {title(change.item)}: {change.why}")
            api.delete(change.live)
            wait_until_deleted(api, change.live)
    for change in changes:
        if change.action != "keep":
            tell(f"apply {title(change.item)}")
            _apply_change(api, change, force=force)


def _apply_change(api: KubernetesApi, change: PlannedChange, *, force: bool) -> None:
    if change.live is None or change.action == "replace":
        api.apply(change.item, force=force)
        return
    version = change.live["metadata"]["resourceVersion"]
    for _ in range(TRIES):
        try:
            api.apply(change.item, version=version, force=force)
        except ObjectChanged:
            version = _version_of_same_change(api, change, force=force)
        else:
            return
    raise ObjectChanged(f"{title(change.item)} changes all the time; apply it again")


def _version_of_same_change(api: KubernetesApi, change: PlannedChange, *, force: bool) -> str:
    """The newest version, where the change is still the one that was shown."""
    live = api.find_again(change.item)
    result = api.apply(change.item, dry_run=True, force=force)
    same = all(without_server_fields(new) == without_server_fields(old)
               for new, old in ((live, change.live), (result, change.result)))  # fmt: skip
    if live is None or not same:
        raise ObjectChanged(
            f"{title(change.item)} was changed by somebody else since it was shown; apply it again"
        )
    return str(live["metadata"]["resourceVersion"])


def deletable(
    api: KubernetesApi, component: Component, namespace: str, name: str
) -> tuple[list[Object], list[Object]]:
    """The objects of one component of this name, workloads first: ours, and other people's."""
    ours: list[Object] = []
    others: list[Object] = []
    labels = {COMPONENT_LABEL: component, INSTANCE_LABEL: name}
    for kind in COMPONENT_KINDS:
        try:
            items = api.find_all(kind, namespace, labels)
        except NotFound:  # a cluster without KubeRay has no RayJobs
            continue
        for item in items:
            (ours if is_ours(item) else others).append(item)
    return ours, others


def is_ours(item: Object) -> bool:
    """Whether `aalnet deploy apply` made it: its label, and its fields' manager, say so."""
    metadata = item["metadata"]
    applied = any(
        entry.get("manager") == MANAGER and entry.get("operation") == "Apply"
        for entry in metadata.get("managedFields") or []
    )
    return applied and metadata.get("labels", {}).get(MANAGED_BY_LABEL) == MANAGER


def delete_objects(
    api: KubernetesApi, items: Sequence[Object], tell: Callable[[str], None]
) -> None:
    """Delete these very objects; workloads are waited for. Raises TimedOut, ObjectChanged."""
    for item in items:
        tell(f"delete {title(item)}")
        api.delete(item)
    for item in items:
        if item["kind"] in (*JOB_KINDS, *SERVER_KINDS):
            wait_until_deleted(api, item)


def wait_until_deleted(
    api: KubernetesApi, item: Object, timeout_s: float = DELETION_TIMEOUT_S
) -> None:
    """Until the object, and no other of its name, is gone. Raises TimedOut."""
    end_s = time.monotonic() + timeout_s
    while (live := api.find_again(item)) and live["metadata"]["uid"] == item["metadata"]["uid"]:
        if time.monotonic() > end_s:
            finalizers = ", ".join(live["metadata"].get("finalizers", [])) or "none"
            raise TimedOut(
                f"{title(item)} is not gone after {timeout_s:.0f} s (finalizers: {finalizers}); "
                "is its operator running? `kubectl describe` tells more"
            )
        time.sleep(POLL_S)

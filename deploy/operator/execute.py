"""Carries out a plan, and takes things away again. What was shown is what is done, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from deploy.operator.api import Cluster
from deploy.operator.errors import Changed, TimedOut
from deploy.operator.objects import Object, title
from deploy.operator.plan import Step
from deploy.operator.text import plain

TRIES = 5  # controllers write to objects all the time: a new version of the same is no change
GONE_WITHIN_S = 300.0  # a head saves a checkpoint, and KubeRay takes its cluster away
POLL_S = 1.0


def execute(
    cluster: Cluster, steps: Sequence[Step], tell: Callable[[str], None], *, force: bool = False
) -> None:
    """Apply what a plan says, jobs to be replaced first out of the way. The same again is safe.

    Raises:
        Changed: an object has become another since it was shown.
        TimedOut: a job to be replaced does not go.
    """
    replaced = [step for step in steps if step.action == "replace" and step.live is not None]
    for step in replaced:  # before its settings change: a retry of KubeRay's would read them
        assert step.live is not None
        tell(f"delete {title(step.item)}: {step.why}")
        cluster.delete(step.live)
        wait_gone(cluster, step.live)
    for step in steps:
        if step.action != "keep":
            tell(f"apply {title(step.item)}")
            _apply(cluster, step, force=force)


def _apply(cluster: Cluster, step: Step, *, force: bool) -> None:
    if step.live is None or step.action == "replace":
        cluster.apply(step.item, force=force)
        return
    version = step.live["metadata"]["resourceVersion"]
    for _ in range(TRIES):
        try:
            cluster.apply(step.item, version=version, force=force)
        except Changed:
            version = _same_change(cluster, step, force=force)
        else:
            return
    raise Changed(f"{title(step.item)} changes all the time; apply it again")


def _same_change(cluster: Cluster, step: Step, *, force: bool) -> str:
    """The newest version, where the change is still the one that was shown."""
    item = step.item
    metadata = item["metadata"]
    now = cluster.find(item["apiVersion"], item["kind"], metadata["namespace"], metadata["name"])
    result = cluster.apply(item, dry_run=True, force=force)
    if now is None or plain(now) != plain(step.live) or plain(result) != plain(step.result):
        raise Changed(
            f"{title(item)} was changed by somebody else since it was shown; apply it again"
        )
    return str(now["metadata"]["resourceVersion"])


def wait_gone(cluster: Cluster, item: Object, within_s: float = GONE_WITHIN_S) -> None:
    """Until the object, and no other of its name, is gone. Raises TimedOut."""
    metadata = item["metadata"]
    end_s = time.monotonic() + within_s
    while True:
        now = cluster.find(
            item["apiVersion"], item["kind"], metadata["namespace"], metadata["name"]
        )
        if now is None or now["metadata"]["uid"] != metadata["uid"]:
            return
        if time.monotonic() > end_s:
            left = ", ".join(now["metadata"].get("finalizers", [])) or "none"
            raise TimedOut(
                f"{title(item)} is not gone after {within_s:.0f} s (finalizers: {left}); "
                "is its operator running? `kubectl describe` tells more"
            )
        time.sleep(POLL_S)

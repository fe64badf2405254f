"""Pods as their conditions and events tell of them: what runs, and why the rest waits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deploy.operator.objects import Object

IMAGE_TROUBLE = {
    "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "InvalidImageName",
    "ErrImageNeverPull", "RegistryUnavailable",
}  # fmt: skip
NO_TROUBLE = {"ContainerCreating", "PodInitializing"}
ENDED = ("Succeeded", "Failed")
QUOTA = "exceeded quota"


def is_ready(pod: Object) -> bool:
    """Whether the pod is ready for its work."""
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod.get("status", {}).get("conditions", [])
    )


def counted(pods: Sequence[Object]) -> str:
    """`2/3 pods ready`; pods that have ended do not count."""
    living = [pod for pod in pods if pod.get("status", {}).get("phase") not in ENDED]
    ready = sum(is_ready(pod) for pod in living)
    return f"{ready}/{len(living)} pods ready" if living else "no pods"


def troubles(pods: Sequence[Object], events: Iterable[Object]) -> list[str]:
    """Why pods wait or fail, or never came; the same reason once, with how many pods share it."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        for reason in _of_pod(pod):
            found.setdefault(reason, []).append(pod["metadata"]["name"])
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in found.items()
    ]
    return [*lines, *dict.fromkeys(_of_events(events))]


def _of_pod(pod: Object) -> Iterator[str]:
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _unscheduled(condition)
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    for container in containers:
        yield from _of_container(container)
    if status.get("phase") == "Failed" and status.get("reason"):  # Evicted, Preempting
        yield f"{status['reason']}: {_short(status.get('message', ''))}"


def _unscheduled(condition: dict[str, Any]) -> str:
    told = _short(condition.get("message", ""))
    if missing := re.search(r"Insufficient (\S+/gpu)", told):
        return f"no free GPU ({missing[1]}): {told}"
    return f"{condition.get('reason', 'Unschedulable')}: {told}"


def _of_container(container: dict[str, Any]) -> Iterator[str]:
    waiting = container.get("state", {}).get("waiting")
    if waiting and waiting.get("reason", "") not in NO_TROUBLE:
        reason = waiting.get("reason", "waiting")
        kind = "its image cannot be had, " if reason in IMAGE_TROUBLE else ""
        yield f"{kind}{reason}: {_short(waiting.get('message', ''))}".rstrip(": ")
    last = container.get("lastState", {}).get("terminated") or {}
    if last.get("reason") == "OOMKilled":
        yield f"{container['name']} was out of memory and began again"


def _of_events(events: Iterable[Object]) -> Iterator[str]:
    """Pods that could not even be made: nothing but an event tells of them."""
    for event in events:
        message = str(event.get("message", ""))
        if QUOTA in message:
            yield f"no quota: {_short(message[message.index(QUOTA) :])}"
        elif str(event.get("reason", "")).startswith("FailedCreate") or (
            event.get("reason") == "FailedToCreateHeadPod"
        ):
            yield f"{event['reason']}: {_short(message)}"


def _short(message: str) -> str:
    return " ".join(str(message).split())[:240]

"""Pods by their conditions and events: what runs, and why the rest waits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deploy.operator.objects import Object

IMAGE_REASONS = {
    "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "InvalidImageName",
    "ErrImageNeverPull", "RegistryUnavailable",
}  # fmt: skip
USUAL_REASONS = {"ContainerCreating", "PodInitializing"}
FINAL_PHASES = ("Succeeded", "Failed")
QUOTA = "exceeded quota"


def ready_summary(pods: Sequence[Object]) -> str:
    """`2/3 pods ready`; pods that have ended do not count."""
    living = [pod.get("status", {}) for pod in pods]
    living = [status for status in living if status.get("phase") not in FINAL_PHASES]
    ready = sum(
        any(condition["type"] == "Ready" and condition["status"] == "True"
            for condition in status.get("conditions", []))
        for status in living
    )  # fmt: skip
    return f"{ready}/{len(living)} pods ready" if living else "no pods"


def problems(pods: Sequence[Object], events: Iterable[Object]) -> list[str]:
    """Why pods wait or fail, or never came; the same reason once, with how many pods share it."""
    names_by_reason: dict[str, list[str]] = {}
    for pod in pods:
        for reason in _of_pod(pod):
            names_by_reason.setdefault(reason, []).append(pod["metadata"]["name"])
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in names_by_reason.items()
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
        yield f"{status['reason']}: {one_line(status.get('message', ''))}"


def _unscheduled(condition: dict[str, Any]) -> str:
    message = one_line(condition.get("message", ""))
    if missing := re.search(r"Insufficient (\S+/gpu)", message):
        return f"no free GPU ({missing[1]}): {message}"
    return f"{condition.get('reason', 'Unschedulable')}: {message}"


def _of_container(container: dict[str, Any]) -> Iterator[str]:
    waiting = container.get("state", {}).get("waiting")
    if waiting and waiting.get("reason", "") not in USUAL_REASONS:
        reason = waiting.get("reason", "waiting")
        kind = "its image cannot be had, " if reason in IMAGE_REASONS else ""
        yield f"{kind}{reason}: {one_line(waiting.get('message', ''))}".rstrip(": ")
    last = container.get("lastState", {}).get("terminated") or {}
    if last.get("reason") == "OOMKilled":
        yield f"{container['name']} was out of memory and began again"


def _of_events(events: Iterable[Object]) -> Iterator[str]:
    """Pods that could not even be made: nothing but an event tells of them."""
    for event in events:
        message = str(event.get("message", ""))
        if QUOTA in message:
            yield f"no quota: {one_line(message[message.index(QUOTA) :])}"
        elif str(event.get("reason", "")).startswith("FailedCreate") or (
            event.get("reason") == "FailedToCreateHeadPod"
        ):
            yield f"{event['reason']}: {one_line(message)}"


def one_line(message: str) -> str:
    """A message on one line, of 240 characters at most."""
    return " ".join(str(message).split())[:240]

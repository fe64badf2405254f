"""Logs of a workload's pods, followed across broken connections and from one pod to the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from deploy.operator.api import KubernetesApi
from deploy.operator.errors import KubernetesError, NotFound
from deploy.operator.objects import JOB_KINDS, Object, title
from deploy.operator.status import controller_state, pods_of, submitter_pods

LogSource = Literal["driver", "head", "worker", "endpoint"]
POLL_S = 2.0
NODE_TYPE = "ray.io/node-type"


class LogStream:
    """Shows lines of a workload's logs once each, by their times; `write` gets pod and text."""

    def __init__(
        self, api: KubernetesApi, item: Object, source: LogSource,
        write: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._api, self._item, self._source, self._write = api, item, source, write
        self._last: dict[str, tuple[str, int]] = {}  # pod: a time, and its lines of that time

    def show(self, tail: int | None) -> None:
        """Everything there is now, or of each pod the last `tail` lines.

        Raises:
            NotFound: there is no such pod yet.
        """
        pods = self._pods()
        if not pods:
            raise NotFound(
                f"{title(self._item)} has no {self._source} pod with a log yet "
                f"({controller_state(self._item).status}); aalnet deploy status tells why"
            )
        for pod in pods:
            self._read(pod, tail=tail)

    def follow(self, tail: int | None) -> None:
        """As `show`, and what comes after, until the workload has ended or is gone."""
        item: Object | None = self._item
        while item is not None:
            self._item, pods = item, self._pods()
            job_ended = item["kind"] in JOB_KINDS and controller_state(item).outcome != "going"
            for pod in pods:  # of several, none is waited for
                first = pod["metadata"]["name"] not in self._last
                follow = len(pods) == 1 and not job_ended
                with contextlib.suppress(KubernetesError):  # once more, from the last line
                    self._read(pod, follow=follow, tail=tail if first else None)
            if job_ended:
                return
            time.sleep(POLL_S)
            item = self._api.find_again(item)

    def _pods(self) -> list[Object]:
        pods = pods_of_source(self._item, pods_of(self._api, self._item), self._source)
        return [pod for pod in pods if has_log(pod)]

    def _read(self, pod: Object, *, follow: bool = False, tail: int | None) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        since, count = self._last.setdefault(name, ("", 0))
        lines = self._api.log(pod, container, follow=follow, tail=tail, since=since or None)
        for line_time, text in _new_lines(lines, since, count):
            last_time, count = self._last[name]
            self._last[name] = (line_time, count + 1 if line_time == last_time else 1)
            self._write(name, text)


def _new_lines(lines: Iterator[bytes], since: str, count: int) -> Iterator[tuple[str, str]]:
    """Time and text of lines after the `count` first of `since`: the server repeats the second."""
    for line in lines:
        line_time, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
        if line_time == since and count > 0:
            count -= 1
        elif line_time >= since:
            yield line_time, text


def pods_of_source(item: Object, pods: Sequence[Object], source: LogSource) -> list[Object]:
    """The pods whose logs these are."""
    if source == "driver" and item["kind"] in JOB_KINDS:
        return submitter_pods(pods)
    if source in ("head", "worker"):
        return [pod for pod in pods if pod["metadata"]["labels"].get(NODE_TYPE) == source]
    if item["kind"] in JOB_KINDS:
        return []
    return [pod for pod in pods if pod["metadata"]["labels"].get(NODE_TYPE) != "head"]


def has_log(pod: Object) -> bool:
    """Whether its first container has begun."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return any("running" in s["state"] or "terminated" in s["state"] for s in statuses)

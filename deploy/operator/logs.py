"""Logs of a workload's pods, followed across broken connections and from one pod to the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from deploy.operator.api import Cluster
from deploy.operator.errors import ClusterError, Missing
from deploy.operator.look import pods_of, submitters
from deploy.operator.objects import JOBS, Object, title
from deploy.operator.state import state_of

Source = Literal["driver", "head", "worker", "endpoint"]
POLL_S = 2.0
NODE_TYPE = "ray.io/node-type"


class Follower:
    """Shows lines of a workload's logs once each, by their times; `write` gets pod and text."""

    def __init__(
        self, cluster: Cluster, item: Object, source: Source, write: Callable[[str, str], None]
    ) -> None:
        self._cluster, self.item, self._source, self._write = cluster, item, source, write
        self._last: dict[str, tuple[str, int]] = {}  # pod: a time, and lines shown of that time

    def show(self, tail: int | None) -> None:
        """Everything there is now, or of each pod the last `tail` lines.

        Raises:
            Missing: there is no such pod yet.
        """
        pods = chosen(self.item, pods_of(self._cluster, self.item), self._source)
        begun = [pod for pod in pods if has_begun(pod)]
        if not begun:
            raise Missing(
                f"{title(self.item)} has no {self._source} pod with a log yet "
                f"({state_of(self.item).status}); aalnet deploy status tells why"
            )
        for pod in begun:
            self._read(pod, tail=tail)

    def follow(self, tail: int | None) -> None:
        """As `show`, and what comes after, until the workload has ended or is gone."""
        while True:
            pods = chosen(self.item, pods_of(self._cluster, self.item), self._source)
            begun = [pod for pod in pods if has_begun(pod)]
            ended = state_of(self.item).outcome != "going" and self.item["kind"] in JOBS
            for pod in begun:  # of several, none is waited for
                unseen = pod["metadata"]["name"] not in self._last
                alone = len(begun) == 1 and not ended
                with contextlib.suppress(ClusterError):  # asked for again, from the last line
                    self._read(pod, follow=alone, tail=tail if unseen else None)
            if ended:
                return
            time.sleep(POLL_S)
            metadata = self.item["metadata"]
            found = self._cluster.find(
                self.item["apiVersion"], self.item["kind"], metadata["namespace"], metadata["name"]
            )
            if found is None:
                return
            self.item = found

    def _read(self, pod: Object, *, follow: bool = False, tail: int | None) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        since, shown = self._last.setdefault(name, ("", 0))
        lines = self._cluster.log(pod, container, follow=follow, tail=tail, since=since or None)
        for at, text in _fresh(lines, since, shown):
            last, count = self._last[name]
            self._last[name] = (at, count + 1 if at == last else 1)
            self._write(name, text)


def _fresh(lines: Iterator[bytes], since: str, shown: int) -> Iterator[tuple[str, str]]:
    """Time and text of lines after the last one shown; the server repeats the whole second."""
    for line in lines:
        at, _, text = line.decode("utf-8", "replace").partition(" ")
        if since and at < since:
            continue
        if since and at == since and shown > 0:
            shown -= 1
            continue
        yield at, text


def chosen(item: Object, pods: Sequence[Object], source: Source) -> list[Object]:
    """The pods whose logs are asked for."""
    if source == "driver" and item["kind"] in JOBS:
        return submitters(pods)
    if source in ("head", "worker"):
        return [pod for pod in pods if pod["metadata"]["labels"].get(NODE_TYPE) == source]
    serving = [pod for pod in pods if pod["metadata"]["labels"].get(NODE_TYPE) != "head"]
    return serving if item["kind"] not in JOBS else []


def has_begun(pod: Object) -> bool:
    """Whether its first container has a log."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return any("running" in s["state"] or "terminated" in s["state"] for s in statuses)

"""Waits for a workload with progress: a line whenever something has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cluster.view.progress import duration, printable
from deploy.operator.api import Cluster
from deploy.operator.errors import ClusterError, TimedOut, WatchExpired
from deploy.operator.look import View, look
from deploy.operator.objects import Object, title
from deploy.operator.transport import Unreachable

TICK_S = 5.0  # between looks at the pods, where the workload itself says nothing new
IMAGES_EVERY_S = 30.0
PATIENCE_S = 600.0  # a control plane may be away while it is upgraded


class Watched:
    """One object, kept up to date by a watch."""

    def __init__(self, cluster: Cluster, item: Object) -> None:
        self._cluster, self.item = cluster, item
        self._version = str(item["metadata"]["resourceVersion"])

    def wait(self, seconds: float) -> None:
        """Until the object changes, at most so long.

        Raises:
            ClusterError: the object was deleted.
        """
        end_s = time.monotonic() + seconds
        try:
            for kind, found in self._cluster.watch(self.item, self._version, seconds):
                self._version = str(found["metadata"]["resourceVersion"])
                if kind == "DELETED":
                    raise ClusterError(f"{title(self.item)} was deleted meanwhile")
                if kind != "BOOKMARK":
                    self.item = found
                    return
        except WatchExpired:
            self._read()
            return
        time.sleep(max(0.0, min(1.0, end_s - time.monotonic())))  # it broke off: not at once again

    def _read(self) -> None:
        metadata = self.item["metadata"]
        self.item = self._cluster.get(
            self.item["apiVersion"], self.item["kind"], metadata["namespace"], metadata["name"]
        )
        self._version = str(self.item["metadata"]["resourceVersion"])


def views(cluster: Cluster, item: Object, timeout_s: float | None) -> Iterator[View]:
    """Looks at a workload until it is done or has failed; the last one says which.

    Raises:
        TimedOut: neither, in time.
        Unreachable: the cluster has not answered for ten minutes.
    """
    began_s = seen_s = time.monotonic()
    watched = Watched(cluster, item)
    view: View | None = None
    while True:
        try:
            if view is not None:
                watched.wait(TICK_S)
            view = look(cluster, watched.item)
            seen_s = time.monotonic()
        except Unreachable:
            if time.monotonic() - seen_s > PATIENCE_S:
                raise
            time.sleep(TICK_S)
            continue
        yield view
        if view.state.outcome != "going":
            return
        if timeout_s is not None and time.monotonic() - began_s > timeout_s:
            reasons = "; ".join(view.waiting) or view.state.status
            raise TimedOut(
                f"{title(item)} is not done after {duration(timeout_s)} ({reasons}); it goes on: "
                "aalnet deploy status"
            )


class Lines:
    """Prints views: at once where something else than the images has changed, else now and then."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name, self._tell = name, tell
        self._began_s = time.monotonic()
        self._told, self._told_at_s = "", -IMAGES_EVERY_S

    def show(self, view: View) -> None:
        """Print a line, or leave it out."""
        now_s = time.monotonic()
        words = [self._name, view.state.status, view.pods]
        words += [view.state.reason] if view.state.reason else []
        words += [f"waiting: {'; '.join(view.waiting)}"] if view.waiting else []
        line = "  ".join(words)
        images = f"  images {view.images[0]:,}/{view.images[1]:,}" if view.images else ""
        said = f"  | {view.said}" if view.said and not images else ""
        if line == self._told and now_s - self._told_at_s < IMAGES_EVERY_S:
            return
        if line != self._told or images or said:
            self._told, self._told_at_s = line, now_s
            elapsed = duration(round(now_s - self._began_s))
            self._tell(printable(f"{elapsed:>7}  {line}{images}{said}"))

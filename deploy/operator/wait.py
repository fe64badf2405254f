"""Waits for a workload with progress: a line whenever something has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cluster.view.progress import duration, printable
from deploy.operator.api import KubernetesApi
from deploy.operator.errors import KubernetesError, TimedOut, Unreachable
from deploy.operator.objects import Object, title
from deploy.operator.status import WorkloadStatus, workload_status

POLL_S = 3.0
IMAGES_EVERY_S = 30.0
PATIENCE_S = 600.0  # a control plane may be away while it is upgraded


def statuses(api: KubernetesApi, item: Object, timeout_s: float | None) -> Iterator[WorkloadStatus]:
    """Of a workload until it is done or has failed; the last one says which.

    Raises:
        TimedOut: neither, in time.
        Unreachable: the cluster has not answered for ten minutes.
        KubernetesError: the workload was deleted.
    """
    start_s = last_answer_s = time.monotonic()
    while True:
        try:
            live = api.find_again(item)
            if live is None:
                raise KubernetesError(f"{title(item)} was deleted meanwhile")
            status = workload_status(api, live)
        except Unreachable:
            if time.monotonic() - last_answer_s > PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        last_answer_s = time.monotonic()
        yield status
        if status.state.outcome != "going":
            return
        if timeout_s is not None and last_answer_s - start_s > timeout_s:
            reasons = "; ".join(status.waiting) or status.state.status
            raise TimedOut(
                f"{title(item)} is not done after {duration(timeout_s)} ({reasons}); it goes on: "
                "aalnet deploy status"
            )
        time.sleep(POLL_S)


class StatusLines:
    """Prints a status: at once where something else than the images has changed, else at times."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name, self._tell = name, tell
        self._start_s = time.monotonic()
        self._last_line, self._last_s = "", -IMAGES_EVERY_S

    def show(self, status: WorkloadStatus) -> None:
        """Print a line, or leave it out."""
        now_s = time.monotonic()
        words = [self._name, status.state.status, status.pods]
        words += [status.state.reason] if status.state.reason else []
        words += [f"waiting: {'; '.join(status.waiting)}"] if status.waiting else []
        line = "  ".join(words)
        progress = f"  | {status.log_line}" if status.log_line else ""
        if status.images:
            progress = f"  images {status.images[0]:,}/{status.images[1]:,}"
        if line != self._last_line or (progress and now_s - self._last_s >= IMAGES_EVERY_S):
            self._last_line, self._last_s = line, now_s
            elapsed = duration(round(now_s - self._start_s))
            self._tell(printable(f"{elapsed:>7}  {line}{progress}"))

"""A run's metrics in the driver: what the workers told last, and what only the driver knows."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from aalnet.settings import Settings
from cluster.background import in_background
from cluster.telemetry.exporter import Exporter, Snapshot
from cluster.telemetry.tally import Tally
from cluster.telemetry.teller import PUBLISH_S, Message

FRESH_S = 5 * PUBLISH_S  # a worker that told nothing for so long is not there
Letters = Callable[[bool], dict[int, Message]]  # asked for the last time?
STATES = ("starting", "running", "recovering", "finished", "failed", "stopped")


class RunExport:
    """Holds every worker's last message; `read` is what a scrape sees."""

    def __init__(self, run: str, settings: Settings, device: str, workers: int) -> None:
        self._tally = Tally(run=run)
        self._last: dict[int, tuple[float, Message]] = {}  # by worker: when, and what it told
        self._lock = threading.Lock()
        tally = self._tally
        tally.set("aalnet_run_info", 1, model=settings.model, device=device)
        tally.set("aalnet_run_target_images", settings.run.images)
        tally.set("aalnet_run_start_timestamp_seconds", time.time())
        tally.set("aalnet_checkpoint_interval_images", settings.run.checkpoint_every_images)
        tally.set("aalnet_workers_wanted", max(workers, 1))

    def take(self, worker: int, message: Message) -> None:
        """Keep a worker's message, if it is a new one."""
        with self._lock:
            before = self._last.get(worker)
            if before is None or before[1] != message:
                self._last[worker] = time.monotonic(), message

    def read(self) -> Iterator[Snapshot]:
        """What is known now; of workers that are gone only worker 0's, which tell of the run."""
        with self._lock:
            told, now_s = dict(self._last), time.monotonic()
        fresh = {worker for worker, (at_s, _) in told.items() if now_s - at_s < FRESH_S}
        status = told[0][1]["status"] if 0 in told else "starting"
        if status == "running" and 0 not in fresh:
            status = "recovering"
        for state in STATES:
            self._tally.set("aalnet_run_state", state == status, state=state)
        self._tally.set("aalnet_workers", len(fresh))
        yield self._tally.snapshot()
        yield from (message for worker, (_, message) in told.items() if worker in {0, *fresh})

    def listen(self, letters: Letters, done: threading.Event) -> None:
        """Take what workers elsewhere told, until `done` is set, and once more then."""
        last = warned = False
        while not last:
            last = done.wait(PUBLISH_S)
            try:
                for worker, message in letters(last).items():
                    self.take(worker, message)
            except Exception as error:  # noqa: BLE001, figures never stop training
                if not warned:
                    warned = True
                    told = f"{type(error).__name__}: {error}"
                    print(f"warning: workers' metrics are not heard: {told}", file=sys.stderr)


@contextlib.contextmanager
def exported(
    run: str,
    settings: Settings,
    device: str,
    workers: int,
    letters: Letters | None = None,
) -> Iterator[RunExport]:
    """Serve a run's metrics while it trains; `letters` gives what workers elsewhere told last."""
    export = RunExport(run, settings, device, workers)
    with Exporter(f"run/{run}", settings.telemetry, export.read):
        if letters is None or settings.telemetry.port == 0:
            yield export
            return
        with in_background(partial(export.listen, letters), "letters", 5 * PUBLISH_S):
            yield export

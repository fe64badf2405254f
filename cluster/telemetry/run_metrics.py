"""A run's metrics in the driver: what the workers sent last, and what only the driver knows."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aalnet.settings import Settings
from cluster.background import in_background
from cluster.telemetry.exporter import serve
from cluster.telemetry.metrics import RunMetrics
from cluster.telemetry.worker import PUBLISH_S, Message

FRESH_S = 5 * PUBLISH_S  # a worker that sent nothing for so long is not there
WorkerMessages = Callable[[bool], dict[int, Message]]  # by rank; True: this is the last call
STATES = ("starting", "running", "recovering", "finished", "failed", "stopped")


class RunCollector(Collector):
    """Merges every worker's last message with the driver's own metrics, at each scrape."""

    def __init__(self, run: str, settings: Settings, device: str, workers: int) -> None:
        self._metrics = RunMetrics(run=run)
        self._last: dict[int, tuple[float, Message]] = {}  # by worker: when it came, and what
        self._lock = threading.Lock()
        metrics = self._metrics
        metrics.set("aalnet_run_info", 1, model=settings.model, device=device)
        metrics.set("aalnet_run_target_images", settings.run.images)
        metrics.set("aalnet_run_start_timestamp_seconds", time.time())
        metrics.set("aalnet_checkpoint_interval_images", settings.run.checkpoint_every_images)
        metrics.set("aalnet_workers_wanted", max(workers, 1))

    def take(self, worker: int, message: Message) -> None:
        """Keep a worker's message, if it is a new one."""
        with self._lock:
            before = self._last.get(worker)
            if before is None or before[1]["at_s"] != message["at_s"]:
                self._last[worker] = time.monotonic(), message

    def collect(self) -> Iterator[Metric]:
        """What is known now; of workers that are gone only worker 0's, which are the run's."""
        with self._lock:
            last, now_s = dict(self._last), time.monotonic()
        fresh = {worker for worker, (at_s, _) in last.items() if now_s - at_s < FRESH_S}
        status = last[0][1]["status"] if 0 in last else "starting"
        if status == "running" and 0 not in fresh:
            status = "recovering"
        for state in STATES:
            self._metrics.set("aalnet_run_state", state == status, state=state)
        self._metrics.set("aalnet_workers", len(fresh))
        families = {family.name: family for family in self._metrics.registry.collect()}
        for worker in sorted({0, *fresh} & last.keys()):
            for name, samples in last[worker][1]["samples"].items():
                for sample in samples:
                    families[name].add_sample(*sample)
        yield from (family for family in families.values() if family.samples)

    def listen(self, worker_metrics: WorkerMessages, done: threading.Event) -> None:
        """Take what workers elsewhere send, until `done` is set, and once more then."""
        last = warned = False
        while not last:
            last = done.wait(PUBLISH_S)
            try:
                for worker, message in worker_metrics(last).items():
                    self.take(worker, message)
            except Exception as error:  # noqa: BLE001, figures never stop training
                if not warned:
                    warned = True
                    reason = f"{type(error).__name__}: {error}"
                    print(f"warning: workers' metrics are not heard: {reason}", file=sys.stderr)


@contextlib.contextmanager
def exported(
    run: str,
    settings: Settings,
    device: str,
    workers: int,
    worker_metrics: WorkerMessages | None = None,
) -> Iterator[RunCollector]:
    """Serve a run's metrics while it trains; `worker_metrics` gives every worker's last message."""
    collector = RunCollector(run, settings, device, workers)
    with serve(f"run/{run}", settings.telemetry, collector):
        if worker_metrics is None or settings.telemetry.port == 0:
            yield collector
            return
        listen = partial(collector.listen, worker_metrics)
        with in_background(listen, "worker metrics", 5 * PUBLISH_S):
            yield collector

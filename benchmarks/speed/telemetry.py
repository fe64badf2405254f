"""What telemetry costs in training, and in the endpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

from prometheus_client import CollectorRegistry, generate_latest

from aalnet.settings import Settings
from benchmarks.speed.training import CYCLE, Trainer, demo
from benchmarks.speed.turns import in_turns
from benchmarks.table import Result, Row
from cluster.runs.run import Record
from cluster.telemetry.run_metrics import RunCollector
from cluster.telemetry.worker import PUBLISH_S, WorkerTelemetry
from deploy.endpoint.metrics import Metrics

SCRAPE_S = 5.0
REQUESTS_PER_S = 20.0


def telemetry(quick: bool) -> Result:
    """What telemetry costs, counted, as a share of a demo step and per request of the endpoint.

    CPU seconds of everything that telemetry does, each repeated some thousand times in this
    process: counting a step, taking in a line of the log (one of 20 steps at the demo's settings),
    a message to the driver (every 2 s, written as JSON as for Ray) and a scrape of two workers'
    figures (every 5 s). The sum is taken over the wall time of a demo step, as if all of it ran in
    the training process itself, which is so with `--workers 0` only. The endpoint's share is what
    one request counts, and a scrape every 5 s at 20 requests a second.
    """
    times = 50 if quick else 5000
    settings = demo(quick=quick)
    trainer, steps = Trainer(settings), 2 if quick else CYCLE
    numbers = iter(range(steps))
    steps_s = in_turns({"step": lambda _: trainer.step(next(numbers))}, steps, warm=()).wall["step"]
    step_s = median(steps_s)
    terms = trainer.step(CYCLE - 1)  # all penalties are due
    parts = _training(settings, terms, times)
    lines = settings.run.log_every_images / settings.data.batch_images
    per_step_s = parts["step"] + parts["line"] / lines
    per_step_s += step_s * (parts["message"] / PUBLISH_S + parts["scrape"] / SCRAPE_S)
    request_s, endpoint_scrape_s = _endpoint(times)
    request_s += endpoint_scrape_s / SCRAPE_S / REQUESTS_PER_S
    rows = [
        Row("telemetry / a demo step", per_step_s / step_s, bar=0.001),
        Row("telemetry, a request of the endpoint", 1e3 * request_s, "ms", bar=1.0),
    ]
    raw = [
        f"a demo step: {1e3 * step_s:.0f} ms, median of {steps}",
        *(f"{name}: {1e6 * seconds:.1f} us" for name, seconds in parts.items()),
        f"endpoint: {1e6 * request_s:.1f} us a request, {1e6 * endpoint_scrape_s:.0f} a scrape",
    ]
    return Result(rows, raw)


def _training(settings: Settings, terms: dict[str, float], times: int) -> dict[str, float]:
    """CPU seconds of each part, once."""

    def warn(text: str) -> None:
        raise AssertionError(text)

    collector = RunCollector("demo", settings, "cpu", 2)
    workers = [WorkerTelemetry("demo", settings, rank, None, warn) for rank in (0, 1)]
    line: Record = {"kind": "train", "images": 480, "time_s": time.time(), "lr": 5e-4,
                    "step_s": 0.3, "data_s": 0.0, "terms": terms}  # fmt: skip
    parts = {
        "step": _mean_s(lambda: workers[0].add_step(24, 0.3, 1e-5, 2e-3), times),
        "line": _mean_s(lambda: workers[0].add_record(line), times),
        "message": _mean_s(lambda: json.dumps(workers[0].message()), times // 10),
    }
    for rank, worker in enumerate(workers):
        worker.add_step(24, 0.3, 1e-5, 2e-3)
        collector.take(rank, worker.message())
    registry = CollectorRegistry()
    registry.register(collector)
    return parts | {"scrape": _mean_s(lambda: generate_latest(registry), times // 10)}


def _endpoint(times: int) -> tuple[float, float]:
    """CPU seconds of what a request counts, and of a scrape."""
    metrics = Metrics()

    def request() -> None:
        for part in (metrics.queue_seconds, metrics.model_seconds, metrics.total_seconds):
            part.observe(0.004)
        metrics.requests.labels("/v1/samples", "200").inc()
        metrics.queued.set(4)
        metrics.batch_samples.observe(8)
        metrics.batch_fill.observe(0.25)
        metrics.samples.inc(8)
        metrics.queued.set(0)

    request_s = _mean_s(request, times)
    return request_s, _mean_s(lambda: generate_latest(metrics.registry), times // 10)


def _mean_s(act: Callable[[], object], times: int) -> float:
    """Mean CPU seconds of this thread."""
    started_s = time.thread_time()
    for _ in range(times):
        act()
    return (time.thread_time() - started_s) / times

"""What one worker measures of its training: numbers by step, and worker 0's of the run's log.

A thread sends them every few seconds; the training loop pays some microseconds a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from aalnet.settings import Settings
from cluster.runs.run import Record
from cluster.telemetry.board import Board
from cluster.telemetry.gpu import measure_gpu
from cluster.telemetry.log_metrics import LogMetrics
from cluster.telemetry.metrics import RunMetrics

PUBLISH_S = 2.0  # between two messages

Message = dict[str, Any]  # `at_s`, `status`, and the `samples` of a RunMetrics
Publish = Callable[[Message], None]


class WorkerTelemetry:
    """Every worker has one. Without `publish` it counts for nobody, and starts no thread.

    Whatever goes wrong is passed to `warn` once, and never reaches the training loop.
    """

    def __init__(
        self,
        run: str,
        settings: Settings,
        worker: int,
        publish: Publish | None,
        warn: Callable[[str], None],
    ) -> None:
        self._warn, self._warned = warn, False
        self._metrics = RunMetrics(run=run, worker=str(worker))
        self._log = LogMetrics(self._metrics, settings) if worker == 0 else None
        self._publish = publish
        self._board: Board | None = None
        self._polled: dict[str, Callable[[], float]] = {}
        self._adding = threading.RLock()  # records come from several threads
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        if self._publish is not None:
            self._thread.start()

    def attach(self, board: Board) -> None:
        """Have TensorBoard get records and pictures too."""
        self._board = board

    def close(self) -> None:
        """Send the last numbers, within a moment."""
        self._done.set()
        if self._board is not None:
            self._board.close()
        if self._thread.is_alive():
            self._thread.join(PUBLISH_S)

    def add_step(self, images: int, step_s: float, data_s: float, communication_s: float) -> None:
        """Count one step of the global batch."""
        metrics = self._metrics
        metrics.observe("aalnet_step_seconds", step_s)
        metrics.observe("aalnet_data_wait_seconds", data_s)
        metrics.observe("aalnet_communication_seconds", communication_s)
        if self._log is not None:
            metrics.count("aalnet_images_total", images)
            metrics.count("aalnet_steps_total")
            metrics.set("aalnet_run_last_progress_timestamp_seconds", time.time())

    def add_past(self, records: Iterable[Record]) -> None:
        """Take in what a run's log holds of earlier starts."""
        for record in records:
            self._guard(self._add_to_log, record, past=True)

    def add_record(self, record: Record) -> None:
        """Take in a record that is logged now."""
        self._guard(self._add_to_log, record, past=False)
        if self._board is not None:
            self._guard(self._board.add_record, record)

    def add_picture(self, images: int, png: bytes) -> None:
        """Take in a sample grid."""
        if self._board is not None:
            self._guard(self._board.add_picture, images, png)

    def poll(self, name: str, value: Callable[[], float]) -> None:
        """Read this metric's value before each message."""
        self._polled[name] = value

    def message(self) -> Message:
        """All numbers of now as plain data."""
        for name, value in self._polled.items():
            set_ = self._metrics.set_total if name.endswith("_total") else self._metrics.set
            set_(name, value())
        self._guard(measure_gpu, self._metrics)
        status = self._log.status if self._log else "running"
        return {"at_s": time.time(), "status": status, "samples": self._metrics.samples()}

    def _add_to_log(self, record: Record, *, past: bool) -> None:
        if self._log is not None:
            with self._adding:
                self._log.add(record, past=past)

    def _work(self) -> None:
        last = False
        while not last:
            last = self._done.wait(PUBLISH_S)
            self._guard(self._send)

    def _send(self) -> None:
        if self._publish is not None:
            self._publish(self.message())

    def _guard(self, act: Callable[..., None], *arguments: Any, **options: Any) -> None:
        try:
            act(*arguments, **options)
        except Exception as error:  # noqa: BLE001, figures never stop training
            if not self._warned:
                self._warned = True
                self._warn(f"metrics are incomplete: {type(error).__name__}: {error}")

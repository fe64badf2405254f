"""What one worker tells of its training: numbers by step, and worker 0's of the run's log.

A thread hands them on every few seconds; the training loop pays a few microseconds a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from aalnet.settings import Settings
from cluster.runs.run import Record
from cluster.telemetry.board import Board
from cluster.telemetry.gpu import read_gpu
from cluster.telemetry.records import RecordFigures
from cluster.telemetry.tally import Tally

PUBLISH_S = 2.0  # between two messages

Message = dict[str, Any]  # `at_s`, `status`, and a tally's `values` and `spreads`
Publish = Callable[[Message], None]


class Teller:
    """Every worker has one. Without `publish` it counts for nobody, and starts no thread.

    Whatever goes wrong in telling is told once by `warn` and never reaches the training loop.
    """

    def __init__(
        self,
        run: str,
        settings: Settings,
        worker: int,
        publish: Publish | None,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._tally = Tally(run=run, worker=str(worker))
        self._records = RecordFigures(self._tally, settings) if worker == 0 else None
        self._publish = publish
        self._board: Board | None = None
        self._reads: dict[str, Callable[[], float]] = {}
        self._warned = False
        self._seeing = threading.RLock()  # records come from several threads
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="teller", daemon=True)

    def start(self) -> None:
        """Begin to hand on."""
        if self._publish is not None:
            self._thread.start()

    def show_on(self, board: Board) -> None:
        """Have TensorBoard see records and pictures too."""
        self._board = board

    def close(self) -> None:
        """Hand on the last numbers, within a moment."""
        self._done.set()
        if self._board is not None:
            self._board.close()
        if self._thread.is_alive():
            self._thread.join(PUBLISH_S)

    def step(self, images: int, step_s: float, data_s: float, communication_s: float) -> None:
        """Count one step of the global batch."""
        tally = self._tally
        tally.observe("aalnet_step_seconds", step_s)
        tally.observe("aalnet_data_wait_seconds", data_s)
        tally.observe("aalnet_communication_seconds", communication_s)
        if self._records is not None:
            tally.add("aalnet_images_total", images)
            tally.add("aalnet_steps_total")
            tally.set("aalnet_run_last_progress_timestamp_seconds", time.time())

    def recall(self, records: Iterable[Record]) -> None:
        """Take in what a run's log holds of earlier starts."""
        for record in records:
            self._guarded(lambda record=record: self._see(record, past=True))  # type: ignore[misc]

    def see(self, record: Record) -> None:
        """Take in a record that is logged now."""
        self._guarded(lambda: self._see(record, past=False))
        if (board := self._board) is not None:
            self._guarded(lambda: board.see(record))

    def picture(self, images: int, png: bytes) -> None:
        """Take in a sample grid."""
        if (board := self._board) is not None:
            self._guarded(lambda: board.picture(images, png))

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Ask for this metric's value before each message."""
        self._reads[name] = value

    def _see(self, record: Record, *, past: bool) -> None:
        if self._records is not None:
            with self._seeing:
                self._records.see(record, past=past)

    def _work(self) -> None:
        while not self._done.wait(PUBLISH_S):
            self._guarded(self._tell)
        self._guarded(self._tell)

    def _tell(self) -> None:
        for name, value in self._reads.items():
            self._tally.set(name, value())
        self._guarded(lambda: read_gpu(self._tally))
        status = self._records.status if self._records else "running"
        if self._publish is not None:
            self._publish({"at_s": time.time(), "status": status, **self._tally.snapshot()})

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001, figures never stop training
            if not self._warned:
                self._warned = True
                self._warn(f"metrics are incomplete: {type(error).__name__}: {error}")

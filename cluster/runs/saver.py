"""Writes checkpoints and sample grids in the background, one at a time, the newest state first.

The training loop pays one copy to host memory. While the storage fails, training goes on and the
newest state waits; when the storage has failed for too long, the loop is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from aalnet.errors import UserError
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.runs import checkpoint, retention
from cluster.runs.log import RunLog
from cluster.runs.run import Run
from cluster.runs.snapshot import Files, Snapshot, take_snapshot
from cluster.storage.lease import LeaseLost
from cluster.storage.store import StoreError

PICTURES = 32  # grids that wait at most; older ones are given up
FIRST_AGAIN_S, LONGEST_AGAIN_S = 0.5, 5.0


class StorePatienceSpent(StoreError):
    """The storage failed for longer than `failures.storage_patience_s`."""


class Saver:
    """The background writer of a run's worker 0. One snapshot under way, one waiting."""

    def __init__(self, run: Run, settings: Settings, run_log: RunLog) -> None:
        self._run, self._settings, self._run_log = run, settings, run_log
        self._patience_s = settings.failures.storage_patience_s
        self._writing: Snapshot | None = None
        self._waiting: Snapshot | None = None
        self._asked_at_s: dict[int, tuple[float, float]] = {}  # by images: when, and the stall
        self._pictures: dict[str, bytes] = {}
        self._spare: Files | None = None
        self._error: Exception | None = None
        self.failures = 0  # tries that the storage refused
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def save(self, state: TrainState, figures: Mapping[str, Any]) -> None:
        """Copy the state; it is written soon. A state that still waits is given up for it."""
        started_at_s = time.perf_counter()
        with self._changed:
            given_up, self._waiting = self._waiting, None
            buffers, self._spare = (given_up.files if given_up else self._spare), None
        snapshot = take_snapshot(state, figures, buffers)
        stall_s = time.perf_counter() - started_at_s
        with self._changed:
            self._asked_at_s[snapshot.images_seen] = (started_at_s, stall_s)
            self._waiting = snapshot
            under_way = self._writing.images_seen if self._writing else None
            self._changed.notify_all()
        if under_way is not None:
            instead = f", in place of {given_up.images_seen:,}" if given_up else ""
            self._warn(
                snapshot.images_seen,
                f"checkpoint at {snapshot.images_seen:,} images waits{instead}: "
                f"the one at {under_way:,} is still being written",
            )

    def picture(self, name: str, png: bytes) -> None:
        """Write a sample grid soon."""
        with self._changed:
            self._pictures[name] = png
            while len(self._pictures) > PICTURES:
                del self._pictures[next(iter(self._pictures))]
            self._changed.notify_all()

    @property
    def queued(self) -> int:
        """Checkpoints and pictures that are being written, or wait."""
        with self._changed:
            checkpoints = (self._writing is not None) + (self._waiting is not None)
            return checkpoints + len(self._pictures)

    def check(self) -> None:
        """Raises what ended the writing: StorePatienceSpent, CheckpointTaken."""
        if self._error is not None:
            raise self._error

    def close(self, patience_s: float | None = None) -> None:
        """Wait until all is written, for `patience_s` at most where given.

        Raises:
            StoreError: it could not be, in time.
        """
        with self._changed:
            again, self._closing = self._closing, True  # who waited once waits no second time
            self._changed.notify_all()
        self._thread.join(0 if again else patience_s)
        self.check()
        if self._thread.is_alive():
            raise StorePatienceSpent(
                f"the last checkpoint was not written to {self._run.store.uri} within "
                f"{patience_s:.0f} s; the same command goes on from the one before"
            )

    def _work(self) -> None:
        try:
            self._sweep()
            while (job := self._next()) is not None:
                self._write_patiently(job)
        except Exception as error:  # noqa: BLE001, handed to the loop, which raises it
            self._error = error

    def _next(self) -> Snapshot | str | None:
        """The waiting snapshot, else the name of a picture; None when all is written."""
        with self._changed:
            while True:
                if self._waiting is not None:
                    self._writing, self._waiting = self._waiting, None
                    return self._writing
                if self._pictures:
                    return next(iter(self._pictures))
                if self._closing:
                    return None
                self._changed.wait()

    def _write_patiently(self, job: Snapshot | str) -> None:
        failing_since_s: float | None = None
        again_s = FIRST_AGAIN_S
        while True:
            try:
                self._write(job)
                break
            except LeaseLost:
                raise
            except StoreError as error:
                now_s = time.monotonic()
                self.failures += 1
                if failing_since_s is None:
                    failing_since_s = now_s
                    self._warn(_images_of(job), f"storage fails, training goes on: {error}")
                if now_s - failing_since_s > self._patience_s:
                    raise StorePatienceSpent(
                        f"storage has failed for {now_s - failing_since_s:.0f} s, longer than "
                        f"failures.storage_patience_s: {error}"
                    ) from error
            with self._changed:
                self._changed.wait_for(lambda: self._closing, again_s)
                if isinstance(job, Snapshot) and self._waiting is not None:
                    self._spare = job.files
                    job = self._writing = self._waiting
                    self._waiting = None
            if self._closing:
                time.sleep(again_s)
            again_s = min(2 * again_s, LONGEST_AGAIN_S)
        if failing_since_s is not None:
            outage_s = time.monotonic() - failing_since_s
            self._warn(_images_of(job), f"storage answers again, after {outage_s:.0f} s")

    def _write(self, job: Snapshot | str) -> None:
        if isinstance(job, str):
            if (png := self._pictures.get(job)) is not None:
                self._run.store.write(self._run.key("samples", job), png)
            with self._changed:
                self._pictures.pop(job, None)
            return
        self._run_log.flush()  # what was logged up to a checkpoint is stored when it is
        manifest = checkpoint.write(self._run, job)
        asked_at_s, stall_s = self._asked_at_s.pop(job.images_seen)
        self._run_log.log({
            "kind": "checkpoint", "images": job.images_seen, "bytes": manifest.size_bytes,
            "seconds": time.perf_counter() - asked_at_s, "stall_s": stall_s,
        })  # fmt: skip
        with self._changed:
            self._spare, self._writing = job.files, None
        try:
            retention.prune(self._run, self._settings.run, job.images_seen)
        except (StoreError, UserError) as error:  # the checkpoint is whole: the next one prunes
            self._warn(job.images_seen, f"old checkpoints stay: {error}")

    def _sweep(self) -> None:
        """Remove what earlier starts of the run left unfinished."""
        try:
            retention.sweep(self._run)
        except StoreError as error:
            self._warn(0, f"left-over blobs stay for now: {error}")

    def _warn(self, images: int, text: str) -> None:
        self._run_log.log({"kind": "warning", "images": images, "text": text})


def _images_of(job: Snapshot | str) -> int:
    return job.images_seen if isinstance(job, Snapshot) else int(job.partition(".")[0])

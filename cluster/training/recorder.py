"""What happens besides steps: figures, sample grids, checkpoints, and the run's own records.

Worker 0 does it; the others wait where they must.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aalnet.errors import AalnetError
from aalnet.evaluation import Figures, few_pairs
from aalnet.state import TrainState
from cluster.data.pictures import png
from cluster.runs.figures import silence
from cluster.runs.goodput import before_start, goodput
from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run, latest
from cluster.runs.saver import Saver
from cluster.storage.store import StoreError
from cluster.telemetry.board import Board
from cluster.telemetry.worker import Publish, WorkerTelemetry
from cluster.training.held_out import HeldOut
from cluster.training.world import ProcessWorld

Report = Callable[[int, Figures], None]  # images seen and the figures there, on every worker


@dataclass(frozen=True)
class Launch:
    """What a start knows of the one before, and what may be requested while it trains."""

    at_s: float  # since the epoch
    restart_reason: Callable[[], Record] = dict  # `cause` and `error`; empty at a first start
    node_is_draining: Callable[[], bool] = bool  # a spot notice; every worker must ask alike
    save_requested: threading.Event = field(default_factory=threading.Event)  # of worker 0 alone
    publish: Publish | None = None  # takes the worker's metrics, every few seconds


@dataclass(frozen=True)
class Rank0:
    """What worker 0 alone has: the held-out pairs, the run's log, and what saves its state."""

    held_out: HeldOut
    log: RunLog
    saver: Saver


class Recorder:
    """Writes a run's records and checkpoints. Made, and called, by every worker alike.

    Raises:
        StoreError: the log cannot be opened.
    """

    def __init__(
        self, run: Run, state: TrainState, world: ProcessWorld, report: Report, launch: Launch
    ) -> None:
        self._run, self._state, self._world, self._report = run, state, world, report
        self._launch, self._saved_images = launch, state.images_seen
        self._rank0: Rank0 | None = None
        self._silent = False  # of worker 0: at the last evaluation
        self.telemetry = WorkerTelemetry(
            run.name, state.settings, world.rank, launch.publish, self._warn
        )
        if world.rank == 0:
            held_out = HeldOut(state.settings, state.spec, state.device)
            log = RunLog(run, state.images_seen, self.telemetry.add_record)
            saver = Saver(run, state.settings, log)
            self._rank0 = Rank0(held_out, log, saver)
            last = latest(log.history, "evaluation")
            self._silent = last is not None and self._silence(last, last["images"]) is not None
            if state.settings.telemetry.tensorboard:
                self.telemetry.attach(Board(run, state.images_seen, self._warn))
            self.telemetry.add_past(log.history)
            self.telemetry.poll("aalnet_upload_queue", lambda: saver.queued)
            self.telemetry.poll("aalnet_checkpoint_failures_total", lambda: saver.failures)
        self._started_s = time.perf_counter()

    def start(self, warnings: list[str]) -> None:
        """Log that the run starts, or goes on, with the warnings of where it resumes."""
        self.telemetry.start()
        if self._rank0 is None:
            return
        log, images = self._rank0.log, self._state.images_seen
        before = before_start(log.history, log.void, images, self._launch.at_s)
        reason = {"cause": "driver", **self._launch.restart_reason()}  # a new launch knows no more
        self.log(
            "start",
            total_images=self._state.settings.run.images,
            workers=self._world.size,
            threads=torch.get_num_threads(),
            device=str(self._state.device),
            model=self._state.settings.model,
            **before,
            **(reason if "recovery_s" in before else {}),
        )
        few = few_pairs(len(self._rank0.held_out.targets))
        if few is not None and all(record.get("text") != few for record in log.history):
            warnings = [*warnings, few]
        for text in warnings:
            self._warn(text)

    def checkpoint(self) -> None:
        """Have the state saved in the background; measure and draw first where that is due."""
        if not self._evaluation_due():
            self.save({})
            return
        figures: Figures = {}
        grid = b""
        if self._rank0 is not None:
            held_out = self._rank0.held_out
            started_s = time.perf_counter()
            figures = held_out.evaluate(self._state.ema)
            grid = png(held_out.grid(self._state.ema))
            seconds = time.perf_counter() - started_s
            self.log(
                "evaluation", **{**figures, "held_out_images": figures["images"]},
                ema_distance=self._state.ema_distance(), seconds=seconds,
            )  # fmt: skip
            self._tell_silence(figures)
        self.save(figures)
        if self._rank0 is not None:  # after the state, which is worth more
            self._rank0.saver.picture(f"{self._state.images_seen}.png", grid)
            self.telemetry.add_picture(self._state.images_seen, grid)
        self._world.agree(0)
        self._report(self._state.images_seen, figures)

    def _silence(self, figures: Mapping[str, Any], images: int) -> str | None:
        return silence(figures, images, self._state.settings.run.images)

    def _tell_silence(self, figures: Figures) -> None:
        """Warn where samples no longer differ, once each time that it comes to that."""
        text = self._silence(figures, self._state.images_seen)
        if text is not None and not self._silent:
            self._warn(text)
        self._silent = text is not None

    def _evaluation_due(self) -> bool:
        """Is it, at this checkpoint? By position alone: alike on every worker, and when resumed."""
        settings, images = self._state.settings, self._state.images_seen
        every, pace = settings.run.evaluate_every_images, settings.run.checkpoint_every_images
        if every is None or images >= settings.run.images:
            return True
        before, now = (at // pace * pace for at in (images - settings.data.batch_images, images))
        return before // every < now // every

    def save(self, figures: Figures) -> None:
        """Have the state saved in the background."""
        self._launch.save_requested.clear()
        self._saved_images = self._state.images_seen
        if self._rank0 is not None:
            self._rank0.saver.save(self._state, figures)

    def check(self) -> None:
        """Raises what ended the background writing, if anything did."""
        if self._rank0 is not None:
            self._rank0.saver.check()

    def finish(self) -> None:
        """End well: returns when the last checkpoint is whole."""
        if self._rank0 is not None:
            self._rank0.saver.close()
        self._end("finished")

    def stop(self) -> None:
        """End early, on request, after a last checkpoint within the grace period."""
        if self._state.images_seen > self._saved_images:
            self.save({})
        if self._rank0 is not None:
            self._rank0.saver.close(self._state.settings.failures.grace_s)
        self._end("stopped")

    def flush(self) -> None:
        """Wait for what is being saved, within the grace period."""
        if self._rank0 is not None:
            with contextlib.suppress(AalnetError):  # something worse is about to be raised
                self._rank0.saver.close(self._state.settings.failures.grace_s)

    def fail(self, error: str, **facts: str) -> None:
        """End with an error, and log it if the storage takes it."""
        with contextlib.suppress(StoreError):  # the error itself is raised to the driver
            self._end("failed", error=error, **facts)

    def log(self, kind: str, **facts: Any) -> None:
        """Add a record of this moment to the log."""
        if self._rank0 is not None:
            self._rank0.log.log({**facts, "kind": kind, "images": self._state.images_seen})

    def _warn(self, text: str) -> None:
        self.log("warning", text=text)

    def _end(self, status: str, **reason: str) -> None:
        if self._rank0 is None:
            return
        seconds = time.perf_counter() - self._started_s
        time_use = goodput(self._rank0.log.records(), self._state.settings.data.batch_images)
        facts = {"goodput": round(time_use.share, 4), "seconds": time_use.rounded()}
        self.log("end", status=status, train_seconds=seconds, **facts, **reason)
        self._rank0.log.close()

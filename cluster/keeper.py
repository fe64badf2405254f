"""What happens besides steps: figures, sample grids, checkpoints, and the run's own records.

Worker 0 does it; the others wait where they must.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from aalnet.evaluation import Figures
from aalnet.state import TrainState
from cluster import checkpoint
from cluster.held_out import HeldOut, png
from cluster.runs import Run
from cluster.world import ProcessWorld

Report = Callable[[Figures], None]  # told of every checkpoint's figures, on every worker


class Keeper:
    """Keeps a run's records and checkpoints. Made, and called, by every worker alike."""

    def __init__(self, run: Run, state: TrainState, world: ProcessWorld, report: Report) -> None:
        self._run, self._state, self._world, self._report = run, state, world, report
        self._held_out: HeldOut | None = None
        if world.rank == 0:
            self._held_out = HeldOut(state.settings, state.spec, state.device)
        self._started_s = time.perf_counter()

    def start(self) -> None:
        """Log that the run starts, or goes on."""
        self._log(
            "start",
            total_images=self._state.settings.run.images,
            workers=self._world.size,
            threads=torch.get_num_threads(),
            device=str(self._state.device),
            model=self._state.settings.model,
        )

    def checkpoint(self) -> None:
        """Measure, draw and save. Returns on every worker when the checkpoint is whole."""
        figures: Figures = {}
        if self._held_out is not None:
            started_s = time.perf_counter()
            figures = self._held_out.evaluate(self._state.ema)
            picture = png(self._held_out.grid(self._state.ema))
            name = f"{self._state.images_seen}.png"
            self._run.store.write(self._run.key("samples", name), picture)
            measured_s = time.perf_counter()
            held_out = {**figures, "held_out_images": figures["images"]}
            self._log("evaluation", **{**held_out, "seconds": measured_s - started_s})
            written = checkpoint.save(self._run, self._state, figures)
            checkpoint.prune(self._run, self._state.settings.run.keep_last)
            self._log("checkpoint", bytes=written, seconds=time.perf_counter() - measured_s)
        self._world.agree(0, self._state.device)
        self._report(figures)

    def end(self, status: str, error: str | None = None) -> None:
        """Log how the run ended and how long this start of it took."""
        seconds = time.perf_counter() - self._started_s
        why = {"error": error} if error else {}
        self._log("end", status=status, train_seconds=seconds, **why)

    def _log(self, kind: str, **facts: object) -> None:
        if self._world.rank == 0:
            self._run.log({**facts, "kind": kind, "images": self._state.images_seen})

"""One process, one thread, demo settings, a local folder. A step, a `checkpoint.save` (with its
prune) and an evaluation with its sample grid are timed in turns; the interval is the median step
times the steps between two of the demo's checkpoints. `penalties` are amortised over a cycle. For
information: the loop does all of it between two steps today."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from aalnet.state import TrainState
from benchmarks.steps import CYCLE, Seconds, contender, demo, in_turns, medians
from benchmarks.table import Result, Row
from cluster import checkpoint
from cluster.held_out import HeldOut, png
from cluster.runs import Run
from cluster.store import FolderStore


def measure(quick: bool) -> Result:
    """How long training stands still for a checkpoint."""
    settings = demo(*(("evaluation.max_images=32",) if quick else ()), quick=quick)
    side = contender(settings)
    held_out = HeldOut(settings, side.state.spec, torch.device("cpu"))
    seconds: Seconds = {"cycle": [], "save": [], "evaluation": []}
    with tempfile.TemporaryDirectory() as storage:
        run = Run(FolderStore(storage), "checkpoint")
        for _ in range(1 if quick else 3):
            seconds["cycle"] += in_turns({"demo": side}, range(CYCLE), rounds=1)[0]["demo"]
            for _ in range(5):
                side.state.images_seen += settings.data.batch_images
                seconds["save"].append(timed(lambda: _save(run, side.state)))
            seconds["evaluation"].append(timed(lambda: _evaluate(held_out, side.state)))
    every_steps = settings.run.checkpoint_every_images / settings.data.batch_images
    interval_s = every_steps * statistics.median(seconds["cycle"]) / CYCLE
    shares = {name: 100 * statistics.median(seconds[name]) / interval_s for name in seconds}
    return Result(
        rows=[
            Row("save / interval between checkpoints", shares["save"], "%"),
            Row("evaluation and sample grid / interval", shares["evaluation"], "%"),
            Row("save", statistics.median(seconds["save"]), "s"),
            Row("evaluation and sample grid", statistics.median(seconds["evaluation"]), "s"),
        ],
        raw=[f"interval: {interval_s:.1f} s", *medians(seconds, "cycle, save or evaluation")],
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _save(run: Run, state: TrainState) -> None:
    checkpoint.save(run, state, {})
    checkpoint.prune(run, state.settings.run.keep_last)


def _evaluate(held_out: HeldOut, state: TrainState) -> None:
    held_out.evaluate(state.ema)
    png(held_out.grid(state.ema))

"""What a checkpoint costs the training loop: the call of `Saver.save`, which copies the state to
host memory while another thread serialises and writes, beside one plain host copy of the state
(its tensors found by `state_dict`, then `copy_` into buffers that exist, one by one). In turns,
each after something large has gone through the processor's caches, as a step does; who comes first
changes every round. One process, one thread, a real S3 server on the same machine; each state is
written before the next is taken. At the demo's settings, and for the `base` preset at 64 px. The
interval is the median step, over whole cycles of what is due now and then, times the steps between
two of the demo's checkpoints."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aalnet.state import TrainState
from benchmarks.speed.steps import (
    CYCLE,
    Contender,
    Seconds,
    contender,
    demo,
    in_turns,
    medians,
    ratio,
)
from benchmarks.table import Result, Row
from cluster.data.pictures import png
from cluster.runs.log import RunLog
from cluster.runs.run import Run
from cluster.runs.saver import Saver
from cluster.storage.location import open_store
from cluster.training.held_out import HeldOut
from tests.support.s3_server import environment, s3_server

COPY_BAR, INTERVAL_BAR_PERCENT = 1.2, 1.0
LARGE_BYTES = 128 * 2**20  # more than a processor's caches hold
BIGGER = ("network.preset=base", "data.size_px=64", "data.batch_images=2", "objective.K=2")


def measure(quick: bool) -> Result:
    """How long training stands still for a checkpoint."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(s3_server(Path(folder)))
        stack.enter_context(environment(server.environment))
        few = ("evaluation.max_images=32",) if quick else ()
        small = contender(demo(*few, quick=quick))
        uri = f"s3://{server.bucket}/stall"
        rounds = 3 if quick else 40
        stall = _stalls(small, uri, "demo", rounds)
        rows, raw = _copy_rows("demo", stall), medians(stall, "checkpoint, demo")
        if not quick:
            big = _stalls(contender(demo(*BIGGER)), uri, "base", 15)
            rows += _copy_rows("base, 64 px", big)
            raw += medians(big, "checkpoint, base at 64 px")
        more, told = _shares(small, statistics.median(stall["stall"]), quick=quick)
    return Result([*rows, *more], [*raw, *told])


def _copy_rows(name: str, seconds: Seconds) -> list[Row]:
    found = ratio(seconds, "stall", "copy of found tensors")
    return [
        Row(f"stall / one host copy, {name}", ratio(seconds, "stall", "copy"), bar=COPY_BAR),
        Row(f"stall / the same copy without finding the tensors, {name}", found),
    ]


def _stalls(side: Contender, uri: str, name: str, rounds: int) -> Seconds:
    """Seconds of a save's call and of a plain copy, in turns."""
    state, settings = side.state, side.state.settings
    side.step(0)  # the optimizers hold something from now on
    run = Run(open_store(uri), name)
    journal = RunLog(run, 0)
    saver = _Waited(run, settings, journal)
    buffers = [torch.empty_like(tensor) for tensor in tensors_of(state)]
    large = torch.zeros(LARGE_BYTES // 4)
    seconds: Seconds = {"stall": [], "copy": [], "copy of found tensors": []}
    for number in range(rounds + 2):  # the first two make the saver's buffers
        for what in ("stall", "copy") if number % 2 else ("copy", "stall"):
            large.add_(1.0)
            if what == "stall":
                took_s = timed(lambda: saver.save(state, {}))
                saver.wait()
            else:
                took_s = timed(lambda: copy(buffers, tensors_of(state)))
            if number > 1:
                seconds[what].append(took_s)
        tensors = tensors_of(state)
        large.add_(1.0)
        seconds["copy of found tensors"].append(timed(lambda found=tensors: copy(buffers, found)))
    saver.close()
    journal.close()
    return seconds


def tensors_of(state: TrainState) -> list[Tensor]:
    """Every tensor of a state."""
    return [tensor for tensors in state.tensors().values() for tensor in tensors.values()]


def copy(buffers: list[Tensor], tensors: list[Tensor]) -> None:
    """One plain host copy."""
    for buffer, tensor in zip(buffers, tensors, strict=True):
        buffer.copy_(tensor)


class _Waited(Saver):
    """A saver whose caller can wait for it, so that no write runs beside what is timed."""

    def __init__(self, *arguments: Any) -> None:
        self._written = threading.Event()
        self._written.set()
        super().__init__(*arguments)

    def save(self, *arguments: Any) -> None:
        self._written.clear()
        super().save(*arguments)

    def _write(self, job: Any) -> None:
        super()._write(job)
        self._written.set()

    def wait(self) -> None:
        self._written.wait()
        self.check()


def _shares(side: Contender, stall_s: float, *, quick: bool) -> tuple[list[Row], list[str]]:
    """The stall, and what else stands between two steps, beside the interval of the demo."""
    settings, rounds = side.state.settings, 1 if quick else 2
    held_out = HeldOut(settings, side.state.spec, torch.device("cpu"))
    seconds: Seconds = {"cycle": [], "evaluation": []}
    for _ in range(rounds):
        seconds["cycle"] += in_turns({"demo": side}, range(CYCLE), rounds=1)[0]["demo"]
        seconds["evaluation"].append(timed(lambda: _evaluate(held_out, side.state)))
    every_steps = settings.run.checkpoint_every_images / settings.data.batch_images
    interval_s = every_steps * statistics.median(seconds["cycle"]) / CYCLE
    evaluation_s = statistics.median(seconds["evaluation"])
    rows = [
        Row("stall / interval between checkpoints, demo", 100 * stall_s / interval_s, "%",
            bar=INTERVAL_BAR_PERCENT),
        Row("stall, demo", 1e3 * stall_s, "ms"),
        Row("evaluation and sample grid / interval", 100 * evaluation_s / interval_s, "%"),
    ]  # fmt: skip
    return rows, [f"interval: {interval_s:.1f} s", *medians(seconds, "cycle or evaluation")]


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _evaluate(held_out: HeldOut, state: TrainState) -> None:
    held_out.evaluate(state.ema)
    png(held_out.grid(state.ema))

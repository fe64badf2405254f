"""How long training stands still for a checkpoint."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.training import CYCLE, Trainer, demo
from benchmarks.speed.turns import Times, in_turns
from benchmarks.table import Result, Row
from cluster.data.pictures import png
from cluster.runs.log import RunLog
from cluster.runs.run import Run
from cluster.runs.saver import Saver
from cluster.storage.location import open_store
from cluster.training.held_out import HeldOut
from tests.support.s3_server import environment, s3_server

LARGE_BYTES = 128 * 2**20  # more than a processor's caches hold
BIGGER = ("network.preset=base", "data.size_px=64", "data.batch_images=2", "objective.K=2")


def checkpoint(quick: bool) -> Result:
    """What a checkpoint costs the training loop: the call of `Saver.save`, which copies the state
    to host memory while another thread serialises and writes, beside one plain host copy of the
    state (its tensors found by `state_dict`, then `copy_` into buffers that exist, one by one). In
    turns, each after something large has gone through the processor's caches, as a step does; who
    comes first changes every round. One process, one thread, a real S3 server on the same machine;
    each state is written before the next is taken. At the demo's settings, and for the `base`
    preset at 64 px. The interval is the median step, over whole cycles of what is due now and then,
    times the steps between two of the demo's checkpoints.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(s3_server(Path(folder)))
        stack.enter_context(environment(server.environment))
        few = ("evaluation.max_images=32",) if quick else ()
        trainer = Trainer(demo(*few, quick=quick))
        uri = f"s3://{server.bucket}/stall"
        times = _stalls(trainer, uri, "demo", 3 if quick else 40)
        rows, raw = _stall_rows("demo", times), times.medians("checkpoint, demo")
        if not quick:
            base = _stalls(Trainer(demo(*BIGGER)), uri, "base", 15)
            rows += _stall_rows("base, 64 px", base)
            raw += base.medians("checkpoint, base at 64 px")
        shares = _shares(trainer, median(times.wall["stall"]), quick=quick)
    return Result([*rows, *shares.rows], [*raw, *shares.raw])


def _stall_rows(name: str, times: Times) -> list[Row]:
    without = times.ratio("stall", "copy of found tensors")
    return [
        Row(f"stall / one host copy, {name}", times.ratio("stall", "copy"), bar=1.2),
        Row(f"stall / the same copy without finding the tensors, {name}", without),
    ]


def _stalls(trainer: Trainer, uri: str, name: str, rounds: int) -> Times:
    """Seconds of a save's call and of a plain copy, in turns."""
    state = trainer.state
    trainer.step(0)  # the optimizers hold something from now on
    run = Run(open_store(uri), name)
    run_log = RunLog(run, 0)
    saver = _IdleSaver(run, state.settings, run_log)

    def tensors() -> list[Tensor]:
        return [tensor for group in state.tensors().values() for tensor in group.values()]

    present = tensors()
    buffers = [torch.empty_like(tensor) for tensor in present]
    large = torch.zeros(LARGE_BYTES // 4)

    def copy(sources: list[Tensor]) -> None:
        for buffer, tensor in zip(buffers, sources, strict=True):
            buffer.copy_(tensor)

    def clear_caches() -> None:
        saver.wait()
        large.add_(1.0)

    times = in_turns(
        {
            "stall": lambda _: saver.save(state, {}),
            "copy": lambda _: copy(tensors()),
            "copy of found tensors": lambda _: copy(present),
        },
        rounds,
        between=clear_caches,  # the two warm-up rounds make the saver's buffers
    )
    saver.close()
    run_log.close()
    return times


class _IdleSaver(Saver):
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
        """Until the last state is written. Raises what `check` raises."""
        self._written.wait()
        self.check()


def _shares(trainer: Trainer, stall_s: float, *, quick: bool) -> Result:
    """The stall, and what else stands between two steps, beside the interval of the demo."""
    state = trainer.state
    held_out = HeldOut(state.settings, state.spec, torch.device("cpu"))

    def cycle(_: int) -> None:
        for number in range(CYCLE):
            trainer.step(number)

    def evaluate(_: int) -> None:
        held_out.evaluate(state.ema)
        png(held_out.grid(state.ema))

    cases = {"cycle": cycle, "evaluation": evaluate}
    times = in_turns(cases, 1 if quick else 2, warm=())
    every_steps = state.settings.run.checkpoint_every_images / state.settings.data.batch_images
    interval_s = every_steps * median(times.wall["cycle"]) / CYCLE
    evaluation_s = median(times.wall["evaluation"])
    rows = [
        Row("stall / interval between checkpoints, demo", 100 * stall_s / interval_s, "%", 1.0),
        Row("stall, demo", 1e3 * stall_s, "ms"),
        Row("evaluation and sample grid / interval", 100 * evaluation_s / interval_s, "%"),
    ]
    return Result(rows, [f"interval: {interval_s:.1f} s", *times.medians("cycle or evaluation")])

"""`run.precision: auto`, decided once by a short measurement and kept for the whole run.

Steps in float32 and in bfloat16 (pixels channels-last) take turns on the first batch; bfloat16 is
taken where it is faster and its gradient agrees. Worker 0 measures for all; a resumed run takes
what its newest checkpoint was trained in, so that its path stays the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from aalnet.batch import Batch
from aalnet.errors import CheckpointError
from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.step import train_step
from cluster.data.order import worker_slice
from cluster.data.pairs import Pairs
from cluster.data.reader import BatchMaker
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.training.world import ProcessWorld

FORMATS: list[dict[str, object]] = [
    {"precision": "float32"},
    {"precision": "bfloat16", "channels_last": True},
]
TURNS = 5  # of each format, after one that is not counted
WORTHWHILE = 0.9  # of the time in float32
AGREES = 0.1  # relative difference of the gradients; rounding alone makes about 0.02


class _Gradients:
    """A world of one worker that keeps a copy of the last gradients."""

    def __init__(self) -> None:
        self.last = torch.empty(0)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Keep them; there is nobody to sum with."""
        self.last = torch.cat([tensor.detach().double().flatten() for tensor in tensors[:-1]])


def resolved(
    settings: Settings, run: Run, pairs: Pairs, world: ProcessWorld, device: torch.device
) -> Settings:
    """The settings with a precision in place of `auto`, the same on every worker."""
    if settings.run.precision != "auto":
        return settings
    chosen = 0
    if world.rank == 0:
        before = _of_checkpoint(run)
        chosen = _measured(settings, pairs, world, device) if before is None else before
    return _in_format(settings, world.agree(chosen))


def resolved_anew(settings: Settings, pairs: Pairs, device: torch.device) -> Settings:
    """The same in this process alone, for no run in particular."""
    if settings.run.precision != "auto":
        return settings
    return _in_format(settings, _measured(settings, pairs, ProcessWorld(), device))


def _in_format(settings: Settings, index: int) -> Settings:
    return settings.model_copy(update={"run": settings.run.model_copy(update=FORMATS[index])})


def _of_checkpoint(run: Run) -> int | None:
    """The format of the newest checkpoint that tells it; None in a new run."""
    names = [fmt["precision"] for fmt in FORMATS]
    for checkpoint in reversed(checkpoints(run)):
        try:
            return names.index(checkpoint.manifest().settings["run"]["precision"])
        except (CheckpointError, KeyError, ValueError):
            continue  # damaged: resuming passes it over too, with a warning
    return None


def _measured(settings: Settings, pairs: Pairs, world: ProcessWorld, device: torch.device) -> int:
    """The index of the format to take."""
    states = [
        TrainState(_in_format(settings, index), pairs.spec, device) for index in range(len(FORMATS))
    ]
    offsets = worker_slice(settings.data.batch_images, world.rank, world.size)
    made = BatchMaker(pairs, settings).make(0, offsets)
    seconds: list[list[float]] = [[] for _ in states]
    gradients: list[Tensor] = []
    for turn in range(TURNS + 1):
        for index, state in enumerate(states):
            recorder = _Gradients()
            taken = _time(state, made, recorder)
            if turn:
                seconds[index].append(taken)
            else:
                gradients.append(recorder.last)
    exact, rounded = gradients
    apart = float((rounded - exact).norm() / exact.norm())
    slow, fast = map(statistics.median, seconds)
    return int(fast < WORTHWHILE * slow and apart < AGREES)


def _time(state: TrainState, batch: Batch, world: _Gradients) -> float:
    """Seconds of a step; its values come to the CPU, so the device has finished."""
    started_s = time.perf_counter()
    train_step(state, state.place(batch), world)
    return time.perf_counter() - started_s

"""What the benchmarks train: the demo, a train state with its batches, gloo workers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aalnet.batch import ALONE, World
from aalnet.phases import spans
from aalnet.settings import Settings, load_settings
from aalnet.state import TrainState
from aalnet.step import train_step
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from tests.support.machine import cores

CYCLE = 16  # steps: at the demo's intervals, one with the penalties of G and of D
QUICK = ("data.batch_images=4",)  # a smoke test of the benchmarks, not a measurement


def demo(*overrides: str, quick: bool = False) -> Settings:
    """The demo's settings with `key=value` changes."""
    return load_settings("configs/demo.yaml", [*(QUICK if quick else ()), *overrides])


@cache
def training_pairs(source: str, size_px: int) -> Pairs:
    """The decoded training pairs, once for all trainers."""
    pairs = Pairs(source, size_px)
    pairs.preload()
    return pairs


class Trainer:
    """A fresh train state on the CPU, and one cycle of real batches to step on.

    It stays at the start of the run's last phase, where every part of the objective works.
    """

    def __init__(self, settings: Settings, rank: int = 0, workers: int = 1) -> None:
        pairs = training_pairs(settings.data.train, settings.data.size_px)
        self.state = TrainState(settings, pairs.spec, torch.device("cpu"))
        self.images_seen = spans(self.state.objective, settings.run.images)[-1].images_seen
        self.batches = list(islice(read_batches(pairs, settings, 0, rank, workers), CYCLE))

    def step(self, number: int, world: World = ALONE) -> dict[str, float]:
        """Do the step of this number, which decides what is due; the terms it logs."""
        self.state.steps, self.state.images_seen = number, self.images_seen
        batch = self.state.place(self.batches[number % len(self.batches)])
        return train_step(self.state, batch, world)


def gloo_workers(work: Callable[..., None], workers: int, *arguments: object) -> list[str]:
    """Run `work(rank, answers, *arguments)` in gloo processes; the text of each in answers/rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _in_group, (workers, folder, work, arguments), nprocs=workers, daemon=True
        )
        files = [Path(folder) / str(rank) for rank in range(workers)]
        return [file.read_text() if file.exists() else "" for file in files]


def _in_group(
    rank: int, workers: int, folder: str, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(max(1, cores() // workers))  # as cluster/launch/worker.py does
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers
    )
    work(rank, Path(folder), *arguments)
    dist.destroy_process_group()
    # A gloo thread that lets go of a tensor while Python ends aborts the process, once in a while.
    os._exit(0)

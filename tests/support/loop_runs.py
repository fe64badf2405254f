"""Short runs of the training loop in this process, and what they leave in the storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.batch import Batch
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.data import reader
from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.training import loop
from cluster.training.loop import train
from cluster.training.recorder import Launch, Report
from cluster.training.world import ProcessWorld
from tests.support.tiny_runs import tiny_settings, without_clocks

CPU = torch.device("cpu")
LASTING = ("train", "evaluation", "checkpoint")  # kinds of records that a resumption repeats
QUARTERS = {  # of `tiny_settings`: ignition, the proposal alone, the prior again, D besides
    "objective.ignition_images": 8, "objective.entropy_from": 0.5, "objective.adversary_from": 0.75,
}  # fmt: skip


def run_in(folder: Path, name: str = "demo") -> Run:
    """A run in a folder as its storage."""
    return Run(FolderStore(folder), name)


def go(
    run: Run,
    settings: Settings,
    report: Report | None = None,
    world: ProcessWorld | None = None,
    **launch: Any,
) -> str:
    """Train a run on the CPU until it ends or is stopped; `launch` are fields of its `Launch`."""
    run.claim(settings)
    told = report or (lambda images, figures: None)
    return train(run, settings, world or ProcessWorld(), CPU, told, Launch(time.time(), **launch))


def whole_run(folder: Path, data: Path) -> Run:
    """The run `demo` from its first step to its last, by the settings of `tiny_settings`."""
    run = run_in(folder)
    go(run, tiny_settings(data))
    return run


def of_kind(run: Run, kind: str) -> list[Record]:
    """A run's records of one kind."""
    return [record for record in run.records() if record["kind"] == kind]


def blobs(found: Checkpoint) -> dict[str, bytes]:
    """A checkpoint's files by name."""
    folder = Path(found.run.store.uri) / found.key()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same_run(run: Run, whole: Run) -> None:
    """Both runs say the same and end with the same bytes."""
    for kind in LASTING:
        assert without_clocks(run.records(), [kind]) == without_clocks(whole.records(), [kind])
    assert run.status() == "finished"
    ours, theirs = checkpoints(run)[-1], checkpoints(whole)[-1]
    assert ours.images == theirs.images
    assert blobs(ours) == blobs(theirs)
    samples = [run.store.read(key) for key in run.samples().values()]
    assert samples == [whole.store.read(key) for key in whole.samples().values()]


def break_batch(
    monkeypatch: pytest.MonkeyPatch, position: int, change: Callable[[Batch], Batch]
) -> None:
    """Pass the batch that starts at a position of the run through `change`."""
    whole = reader.BatchMaker.make

    def made(maker: reader.BatchMaker, first: int, offsets: range) -> Batch:
        batch = whole(maker, first, offsets)
        return change(batch) if first == position else batch

    monkeypatch.setattr(reader.BatchMaker, "make", made)


def before_step(monkeypatch: pytest.MonkeyPatch, position: int, do: Callable[[], object]) -> None:
    """Do something before the step at a position of the run; batches are read further ahead."""
    whole = loop.train_step

    def step(state: TrainState, batch: Batch, world: ProcessWorld) -> Any:
        if state.images_seen == position:
            do()
        return whole(state, batch, world)

    monkeypatch.setattr(loop, "train_step", step)

"""A saver at work in a folder that waits or fails on demand, with its journal to read."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aalnet.networks import DataSpec
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState
from cluster.runs import saver
from cluster.runs.checkpoint import Checkpoint, checkpoints, restore
from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run
from cluster.runs.saver import Saver
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.tiny_runs import tiny_values

SOON_S = 20.0
CPU = torch.device("cpu")
SPEC = DataSpec(("a", "b"), 3, 3)


class Gated(FolderStore):
    """A folder whose writes of checkpoints wait at a gate, or fail, and say that they came."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.came: queue.Queue[str] = queue.Queue()
        self.down = False
        self.undeletable = False
        self.loses_reply = False

    def write(self, key: str, data: bytes) -> None:
        """As a folder does, behind the gate."""
        self._pass(key)
        super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        """As a folder does, behind the gate; the reply may be lost."""
        self._pass(key)
        super().create(key, data)
        if self.loses_reply:
            self.loses_reply = False
            raise StoreError("the reply was lost")

    def delete(self, key: str) -> None:
        """As a folder does, where deletes are allowed."""
        if self.undeletable:
            raise StoreError("nobody deletes here")
        super().delete(key)

    def _pass(self, key: str) -> None:
        if "/checkpoints/" in key or "/samples/" in key:
            self.came.put(key)
            assert self.gate.wait(SOON_S)
            if self.down:
                raise StoreError(f"nobody takes {key}")

    def wait_for(self, part: str) -> None:
        """Until a write of a key with `part` in it has come to the gate."""
        while part not in self.came.get(timeout=SOON_S):
            continue


class Books:
    """A saver and its journal."""

    def __init__(self, run: Run, settings: Settings) -> None:
        self.run = run
        self.journal = RunLog(run, 0)
        self.saver = Saver(run, settings, self.journal)

    def records(self, kind: str) -> list[Record]:
        """Of one kind, as stored."""
        self.journal.flush()
        return [record for record in self.run.records() if record["kind"] == kind]

    def warnings(self) -> list[str]:
        """The texts of all warnings."""
        return [record["text"] for record in self.records("warning")]


@contextlib.contextmanager
def bookkeeping(
    run: Run, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Books]]:
    """Open books of settings whose savers try again at once; let all through at the end."""
    monkeypatch.setattr(saver, "FIRST_AGAIN_S", 0.01)
    monkeypatch.setattr(saver, "LONGEST_AGAIN_S", 0.02)
    begun: list[Books] = []

    def make(settings: Settings | None = None) -> Books:
        begun.append(Books(run, settings or settings_of()))
        return begun[-1]

    yield make
    store.gate.set()
    store.down = False
    for books in begun:
        books.saver._closing = True
        with books.saver._changed:
            books.saver._changed.notify_all()
        books.saver._thread.join(SOON_S)
        assert not books.saver._thread.is_alive()
        books.journal.close()


def settings_of(patience_s: float = 900.0, **run_settings: Any) -> Settings:
    """Tiny settings with a patience, and others of `run`."""
    values = tiny_values(Path(), {f"run.{key}": value for key, value in run_settings.items()})
    return parse_settings({**values, "failures": {"storage_patience_s": patience_s}})


def state_at(images: int, settings: Settings | None = None) -> TrainState:
    """A new state that has seen so many images."""
    state = TrainState(settings or settings_of(), SPEC, CPU)
    state.images_seen, state.steps = images, images // 4
    return state


def move(state: TrainState, images: int) -> None:
    """As steps do: change every number in place."""
    with torch.no_grad():
        for tensors in state.tensors().values():
            for tensor in tensors.values():
                tensor.add_(1)
    state.images_seen = images


def numbers(state: TrainState) -> dict[str, Tensor]:
    """A copy of all its tensors."""
    return {f"{a}/{b}": t.clone() for a, ts in state.tensors().items() for b, t in ts.items()}


def restored(run: Run, images: int) -> dict[str, Tensor]:
    """All tensors of the checkpoint at so many images."""
    state = state_at(0)
    restore(state, Checkpoint(run, images))
    return numbers(state)


def images_of(run: Run) -> list[int]:
    """Of every whole checkpoint, in order."""
    return [each.images for each in checkpoints(run)]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, and tensors equal to the bit."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

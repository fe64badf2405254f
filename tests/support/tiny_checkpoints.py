"""Checkpoints of a tiny run, what their folders hold, and forged ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aalnet.errors import CheckpointError
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from aalnet.step import train_step
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from cluster.runs.checkpoint import Checkpoint, save
from cluster.runs.manifest import Blob
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.tiny_runs import tiny_values

CPU = torch.device("cpu")


def fresh_state(data: Path, **overrides: Any) -> TrainState:
    """A state before its first step; `overrides` by key, with `__` for its dots."""
    settings = parse_settings(
        tiny_values(data, {k.replace("__", "."): v for k, v in overrides.items()})
    )
    return TrainState(settings, Pairs(settings.data.train, 32).spec, CPU)


def trained_state(data: Path, steps: int = 3, **overrides: Any) -> TrainState:
    """A state after some steps, so that nothing in it is a default."""
    state = fresh_state(data, **overrides)
    pairs = Pairs(state.settings.data.train, 32)
    batches = read_batches(pairs, state.settings, 0, 0, 1)
    for _ in range(steps):
        train_step(state, state.place(next(batches)))
    batches.close()  # type: ignore[attr-defined]
    return state


def demo_run(folder: Path, state: TrainState) -> Run:
    """The run `demo` with the state's settings and no checkpoint yet."""
    run = Run(FolderStore(folder), "demo")
    run.write_settings(state.settings)
    return run


def checkpoint_at(run: Run, state: TrainState, images: int, **figures: float) -> Checkpoint:
    """The state's checkpoint as if it had seen other images."""
    before = state.images_seen
    state.images_seen = images
    save(run, state, figures)
    state.images_seen = before
    return Checkpoint(run, images)


def flat_tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors of a state by `blob/name`."""
    return {f"{a}/{b}": t for a, ts in state.tensors().items() for b, t in ts.items()}


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where the files of a checkpoint lie."""
    return Path(checkpoint.run.store.uri) / checkpoint.key()


def blob_path(checkpoint: Checkpoint, part: str) -> Path:
    """The file that a checkpoint's manifest names for a part."""
    return folder_of(checkpoint) / checkpoint.manifest().blobs[part].name


def forge(checkpoint: Checkpoint, part: str, data: bytes) -> None:
    """Put other bytes in place of a blob, with a manifest that vouches for them."""
    facts = checkpoint.manifest()
    blob = Blob.of(part, data)
    (folder_of(checkpoint) / blob.name).write_bytes(data)
    forged = dataclasses.replace(facts, blobs={**facts.blobs, part: blob})
    (folder_of(checkpoint) / "MANIFEST.json").write_bytes(forged.to_json())


def forge_facts(checkpoint: Checkpoint, **changes: Any) -> None:
    """Change what a manifest says, and its own digest along with it. None removes a field."""
    path = folder_of(checkpoint) / "MANIFEST.json"
    facts = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "digest"} | changes
    facts = {key: value for key, value in facts.items() if value is not None}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**facts, "digest": digest}, indent=1))


def assert_refused(call: Callable[[], object], *words: str) -> None:
    """The call ends with an error of the checkpoint: one line with these words, exit code 2."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert caught.value.exit_code == 2

"""A small trained state, its run, and one checkpoint of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aalnet.state import TrainState
from cluster.runs.checkpoint import Checkpoint
from cluster.runs.run import Run
from tests.support.tiny_checkpoints import checkpoint_at, demo_run, trained_state


@pytest.fixture(scope="module")
def state(data: Path) -> TrainState:
    return trained_state(data)


@pytest.fixture
def run(tmp_path: Path, state: TrainState) -> Run:
    return demo_run(tmp_path, state)


@pytest.fixture
def whole(run: Run, state: TrainState) -> Checkpoint:
    return checkpoint_at(run, state, 12)

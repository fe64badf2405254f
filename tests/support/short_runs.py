"""Short runs in this process: their settings, their end, every number that they computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aalnet.settings import Settings
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.training.stop import Stop
from tests.support.tiny_runs import tiny_settings, without_clocks

HERE = Placement(0, "cpu", "this machine")
STEPS, EVERY = 64, 8  # of a run, and between checkpoints


def settings_of(data: Path, **overrides: Any) -> Settings:
    """STEPS steps, a checkpoint after every EVERY; `overrides` by key, with `__` for a dot."""
    short = {
        "run.images": 4 * STEPS,
        "run.checkpoint_every_images": 4 * EVERY,
        "run.keep_last": 100,
        "objective.penalty_interval": 8,
    }
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    return tiny_settings(data, {**short, **values})


def trained(run: Run, settings: Settings) -> str:
    """Train in this process; how it ended."""
    run.claim(settings)
    return launcher.train_here(run, settings, HERE, Stop())


def numbers(run: Run) -> Any:
    """Everything that a run computed."""
    blobs = {found.images: dict(found.manifest().blobs) for found in checkpoints(run)}
    return blobs, without_clocks(run.records(), ["train", "evaluation"])

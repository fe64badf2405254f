"""AALNet: from a condition image and a label, several different, plausible target images.

The training step is `aalnet.step.train_step`; the equations are in docs/objective.md. The names
below are loaded when first used, so that `aalnet --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aalnet.batch import Batch
    from aalnet.evaluation import Evaluator
    from aalnet.networks import Discriminator, Generator
    from aalnet.settings import Settings, load_settings
    from aalnet.state import TrainState
    from aalnet.step import train_step

__all__ = [
    "Batch",
    "Discriminator",
    "Evaluator",
    "Generator",
    "Settings",
    "TrainState",
    "load_settings",
    "train_step",
]

_HOMES = {
    "Batch": "batch",
    "Discriminator": "networks",
    "Evaluator": "evaluation",
    "Generator": "networks",
    "Settings": "settings",
    "TrainState": "state",
    "load_settings": "settings",
    "train_step": "step",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `aalnet` has no attribute `{name}`")
    return getattr(importlib.import_module(f"aalnet.{_HOMES[name]}"), name)

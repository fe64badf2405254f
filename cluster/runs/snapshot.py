"""A copy of the training state on the host: all that a checkpoint costs the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aalnet.settings import Settings
from aalnet.state import TrainState

Files = dict[str, dict[str, Tensor]]  # by network or optimizer, then by the tensor's name


@dataclass(frozen=True)
class Snapshot:
    """A state at one moment, on the host: what is written while the state itself goes on."""

    images_seen: int
    steps: int
    files: Files
    settings: Settings
    facts: Mapping[str, Any]  # the manifest's spec and figures

    @property
    def parts(self) -> Files:
        """By blob: what users sample from, and all else."""
        training = {
            f"{file}/{name}": tensor
            for file, tensors in self.files.items()
            if file != "ema"
            for name, tensor in tensors.items()
        }
        return {"ema": self.files["ema"], "training": training}


def take_snapshot(
    state: TrainState, figures: Mapping[str, Any], buffers: Files | None = None
) -> Snapshot:
    """Copy a state to host memory, into `buffers` of an earlier snapshot where given."""
    own = state.tensors()
    into = buffers if buffers is not None and _alike(buffers, own) else _host_like(own)
    sources = [tensor for tensors in own.values() for tensor in tensors.values()]
    targets = [into[file][name] for file, tensors in own.items() for name in tensors]
    with torch.no_grad():  # one call: most of a state's tensors are small
        torch._foreach_copy_(targets, sources, non_blocking=True)
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)
    facts = {"spec": state.spec, "figures": dict(figures)}
    return Snapshot(state.images_seen, state.steps, into, state.settings, facts)


def _alike(buffers: Files, own: Files) -> bool:
    return {f: set(t) for f, t in buffers.items()} == {f: set(t) for f, t in own.items()}


def _host_like(own: Files) -> Files:
    """Host tensors of the same shapes, plain in memory, pinned where copies come from a GPU."""
    return {
        file: {
            name: torch.empty(t.shape, dtype=t.dtype, pin_memory=t.device.type == "cuda")
            for name, t in tensors.items()
        }
        for file, tensors in own.items()
    }

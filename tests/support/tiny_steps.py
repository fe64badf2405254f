"""Tiny networks, batches and steps that the tests of the step share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aalnet.batch import ALONE, Batch, World
from aalnet.networks import DataSpec
from aalnet.sampling import noise_for
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState
from aalnet.step import train_step

SPEC = DataSpec(labels=("a", "b"), condition_channels=1, target_channels=1)
TINY = {"widths": [4, 8], "noise_size": 4, "embedding_size": 8}
BATCH, K = 5, 3
ALL_TERMS = {  # from the first step
    "K": K, "offset_share": 0.5, "flatness": 1e-4, "gamma": 1e-4, "eta": 0.3,
    "lambda_warmup": 0.0,
    "penalty_interval": 2, "r1_interval": 2, "entropy_from": 0.0, "adversary_from": 0.0,
}  # fmt: skip
QUARTERS = {  # of `run.images`: ignition, the proposal alone, the prior again, D besides
    "ignition_images": 5 * BATCH, "entropy_from": 0.5, "adversary_from": 0.75,
}  # fmt: skip
OFF = {
    "lambda": 0.0, "eta": 0.0, "beta": 0.0, "gamma": 0.0, "flatness": 0.0, "offset_share": 0.0,
    "r1": 0.0, "penalty_interval": 1, "r1_interval": 1, "penalty_method": "exact",
}  # fmt: skip


def settings_of(
    model: str = "aalnet", *, run: dict[str, Any] | None = None, **sections: Any
) -> Settings:
    """Settings of a tiny run with every term at work; sections by name, over these."""
    given = {
        "model": model,
        "network": TINY,
        "data": {"batch_images": BATCH},
        "objective": ALL_TERMS | sections.pop("objective", {}),
        "optimizer": {"warmup_images": 10} | sections.pop("optimizer", {}),
        "run": {"images": 4 * 5 * BATCH} | (run or {}),
    }
    return parse_settings(given | sections)


def new_state(settings: Settings, dtype: torch.dtype = torch.float32) -> TrainState:
    """A state at its first step, in this precision."""
    values = settings.to_dict()
    values["run"]["precision"] = str(dtype).removeprefix("torch.")
    return TrainState(parse_settings(values), SPEC, torch.device("cpu"))


def global_batch(images_seen: int, dtype: torch.dtype = torch.float32, k: int = K) -> Batch:
    """White paper with a dark shape, as a function of the images seen."""
    noise = noise_for(7, images_seen, BATCH, 1 + k, TINY["noise_size"])
    coarse = noise_for(8, images_seen, BATCH, 2, 16).view(BATCH, 2, 4, 4)
    drawn = nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear").clamp(-1, 1)
    label = torch.arange(BATCH) % 2
    parts = (drawn[:, :1].to(dtype), drawn[:, 1:].to(dtype), label, noise.to(dtype))
    return Batch(*parts, BATCH)


def part_of(batch: Batch, part: slice) -> Batch:
    """A worker's share of a global batch."""
    tensors = (batch.condition, batch.target, batch.label, batch.noise)
    return Batch(*(tensor[part] for tensor in tensors), batch.global_images)


def train(state: TrainState, steps: int, world: World = ALONE, part: slice = slice(None)) -> None:
    """So many steps, each on the batch that follows from the images seen."""
    dtype = next(state.generator.parameters()).dtype
    for _ in range(steps):
        batch = global_batch(state.images_seen, dtype)
        train_step(state, part_of(batch, part), world)


class Recorder:
    """A world of one worker that keeps a copy of all it was asked to sum."""

    def __init__(self) -> None:
        self.calls: list[list[Tensor]] = []

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Keep a copy of what would be summed."""
        self.calls.append([tensor.detach().clone() for tensor in tensors])


def vector(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as one vector of float64."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def weights_of(state: TrainState) -> Tensor:
    """All networks' and the average's parameters as one vector."""
    networks = (*state.networks.values(), state.ema)
    return vector([p for network in networks for p in network.parameters()])


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative difference of two vectors."""
    return ((found - wanted).norm() / wanted.norm()).item()

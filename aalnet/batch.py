"""One worker's slice of a global batch, and the world it is summed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aalnet.errors import DataError


@dataclass(frozen=True)
class Batch:
    """This worker's slice: n of `global_images` conditions.

    condition [n, Cx, H, W] and target [n, Cy, H, W] float in [-1, 1], label int64 [n],
    noise [n, K, Z]. Losses are sums over the slice divided by `global_images`.
    """

    condition: Tensor
    target: Tensor
    label: Tensor
    noise: Tensor
    global_images: int

    def __post_init__(self) -> None:
        n = self.condition.shape[0]
        fits = (
            self.condition.ndim == self.target.ndim == 4
            and self.noise.ndim == 3
            and self.label.shape == (n,)
            and self.target.shape[0] == self.noise.shape[0] == n
            and self.condition.shape[2:] == self.target.shape[2:]
            and 1 <= n <= self.global_images
        )
        if not fits:
            shapes = {
                name: tuple(getattr(self, name).shape)
                for name in ("condition", "target", "label", "noise")
            }
            raise DataError(f"a batch of {self.global_images} conditions cannot hold {shapes}")

    def to(self, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Batch:
        """The same slice on a device, its floats as `dtype`."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return Batch(
            condition=self.condition.to(device, dtype, memory_format=layout),
            target=self.target.to(device, dtype, memory_format=layout),
            label=self.label.to(device),
            noise=self.noise.to(device, dtype),
            global_images=self.global_images,
        )


class World(Protocol):
    """All that a step knows of the other workers."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers, in place."""


class _Alone:
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """One worker: the sums are already there."""


ALONE: World = _Alone()

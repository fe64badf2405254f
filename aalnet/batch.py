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

    condition [n, Cx, H, W] and target [n, Cy, H, W] float in [-1, 1], or uint8 as they are read;
    label int64 [n], noise [n, 1 + K, Z]: the proposal's, then the prior's. Losses are sums over
    the slice divided by `global_images`.
    `condition_noise` [m, Cx, H, W] float waits for the conditions `noised` int64 [m]; `to` adds it.
    """

    condition: Tensor
    target: Tensor
    label: Tensor
    noise: Tensor
    global_images: int
    noised: Tensor | None = None
    condition_noise: Tensor | None = None

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
        """The same slice on a device, its pictures as `dtype` in [-1, 1] with their noise added.

        Bytes travel, a quarter of what floats would be, and become floats over there.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format
        condition, target = (
            _unit(pixels.to(device), dtype) for pixels in (self.condition, self.target)
        )
        if self.noised is not None and self.condition_noise is not None:
            at, added = self.noised.to(device), self.condition_noise.to(device, dtype)
            condition = condition.index_put((at,), (condition[at] + added).clamp_(-1, 1))
        return Batch(
            condition=condition.contiguous(memory_format=layout),
            target=target.contiguous(memory_format=layout),
            label=self.label.to(device),
            noise=self.noise.to(device, dtype),
            global_images=self.global_images,
        )


def _unit(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    return pixels.to(dtype).div_(127.5).sub_(1)


class World(Protocol):
    """All that a step knows of the other workers."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers, in place."""


class _Alone:
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """One worker: the sums are already there."""


ALONE: World = _Alone()

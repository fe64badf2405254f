"""Which images make the global batch, and their chance: functions of (seed, position) alone.

A position counts conditions since the start of the run, over all workers. So the number of
workers, a crash or a resumption change nothing: position p is always the same image, mirrored
and shifted the same way, with the same noise. Without balancing, each epoch holds every image
exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from aalnet.settings import DataSettings

ORDER, LABELS, WITHIN, CHANCE = range(4)  # separate streams of random numbers under one seed


def worker_slice(global_images: int, rank: int, workers: int) -> range:
    """Offsets of this worker's contiguous share of a global batch; shares differ by at most 1."""
    return range(
        rank * global_images // workers,
        (rank + 1) * global_images // workers,
    )


@dataclass(frozen=True)
class Order:
    """Position in the run -> row of the data set."""

    labels: NDArray[np.int64]  # of every row
    seed: int
    balanced: bool
    _shuffles: dict[tuple[int, ...], tuple[int, NDArray[np.int64]]] = field(
        default_factory=dict, repr=False, compare=False
    )  # of each stream, the epoch in use

    def row(self, position: int) -> int:
        """The row at a position."""
        return self._balanced(position) if self.balanced else self._shuffled(position)

    def _shuffled(self, position: int) -> int:
        epoch, at = divmod(position, len(self.labels))
        return int(self._shuffle(len(self.labels), epoch, ORDER)[at])

    def _balanced(self, position: int) -> int:
        """Every block of positions holds each label once; a label's rows come in epochs."""
        turn, at = divmod(position, len(self._rows_by_label))
        label = int(self._shuffle(len(self._rows_by_label), turn, LABELS)[at])
        rows = self._rows_by_label[label]
        epoch, within = divmod(turn, len(rows))
        return int(rows[self._shuffle(len(rows), epoch, WITHIN, label)[within]])

    def _shuffle(self, count: int, epoch: int, *stream: int) -> NDArray[np.int64]:
        """The permutation of one epoch of a stream; kept until another epoch is asked for."""
        kept = self._shuffles.get(stream)
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng((self.seed, *stream, epoch))
            kept = self._shuffles[stream] = (epoch, rng.permutation(count))
        return kept[1]

    @cached_property
    def _rows_by_label(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]


@dataclass(frozen=True)
class Chance:
    """Everything random about one position. Drawn in a fixed order from (seed, position)."""

    flip: bool
    shift: tuple[int, int]  # pixels down, right
    noise: NDArray[np.float32]  # [K, Z]
    condition_noise: NDArray[np.float32] | None  # [Cx, H, W] or None: this one is left clean


def chance(
    data: DataSettings, seed: int, position: int, noise_shape: tuple[int, int], channels: int
) -> Chance:
    """The chance of one position; `noise_shape` is (K, Z), `channels` Cx."""
    rng = np.random.default_rng((seed, CHANCE, position))
    coin, share = rng.random(2)
    down, right = rng.integers(-data.shift_px, data.shift_px, size=2, endpoint=True)
    noise = rng.standard_normal(noise_shape, np.float32)
    condition_noise = None
    if share < data.noised_share:
        shape = (channels, data.size_px, data.size_px)
        condition_noise = rng.standard_normal(shape, np.float32) * np.float32(data.noised_std)
    flip = data.flip and coin < 0.5
    return Chance(bool(flip), (int(down), int(right)), noise, condition_noise)


def augment(image: NDArray[np.uint8], flip: bool, shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Mirror and shift one image [C, H, W]; the edge is repeated into the gap."""
    if flip:
        image = image[:, :, ::-1]
    for axis, by in enumerate(shift, start=1):
        image = _shifted(image, axis, by)
    return image


def _shifted(image: NDArray[np.uint8], axis: int, by: int) -> NDArray[np.uint8]:
    if by == 0:
        return image
    at = np.moveaxis(np.empty_like(image), axis, 0)
    of = np.moveaxis(image, axis, 0)
    if by > 0:
        at[by:], at[:by] = of[:-by], of[:1]
    else:
        at[:by], at[by:] = of[-by:], of[-1:]
    return np.moveaxis(at, 0, axis)

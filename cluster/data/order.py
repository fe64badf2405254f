"""Which images make the global batch, and their chance: functions of (seed, position) alone.

A position counts conditions since the start of the run, over all workers. So the number of
workers, a crash or a resumption change nothing: position p is always the same image, mirrored
and shifted the same way, with the same noise. Without balancing, each epoch holds every image
exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aalnet.settings import DataSettings

ORDER, LABELS, WITHIN, CHANCE = range(4)  # separate streams of random numbers under one seed
LUCK, NOISE, PIXELS = range(3)  # and under CHANCE
AT_ONCE = 2**14  # draws; larger arrays would be fresh memory each time


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
        """The permutation of one epoch of a stream; kept until another epoch is needed."""
        latest = self._shuffles.get(stream)
        if latest is None or latest[0] != epoch:
            rng = np.random.default_rng((self.seed, *stream, epoch))
            latest = self._shuffles[stream] = (epoch, rng.permutation(count))
        return latest[1]

    @cached_property
    def _rows_by_label(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]


class Chance(NamedTuple):
    """Everything random about one position."""

    flip: bool
    shift: tuple[int, int]  # pixels down, right
    noise: NDArray[np.float32]  # [K, Z]
    condition_noise: NDArray[np.float32] | None  # [Cx, H, W] or None: this one is left clean


class Chances:
    """Position -> its chance; `noise_shape` is (K, Z), `channels` Cx.

    Philox is a function of key and counter: each position and purpose begins at a place of its own
    in one long stream, so that nothing has to be drawn, or seeded anew, for the others. The counter
    of one generator is set: 1.7 us, where a new generator takes 8 (of 170 for a pair of 32 px).
    """

    def __init__(
        self, data: DataSettings, seed: int, noise_shape: tuple[int, int], channels: int
    ) -> None:
        self.data, self.noise_shape = data, noise_shape
        self.condition_shape = (channels, data.size_px, data.size_px)
        self._bits = np.random.Philox(key=np.array([seed, CHANCE], np.uint64))
        self._rng = np.random.Generator(self._bits)
        self._start = self._bits.state

    def at(self, positions: range) -> Iterator[Chance]:
        """The chances of neighbouring positions. All is drawn, whatever is switched off."""
        data = self.data
        self._go_to(positions.start, 0, LUCK)
        coins, shares, *places = self._rng.random((len(positions), 4)).T
        flips = (data.flip & (coins < 0.5)).tolist()
        noised = (shares < data.noised_share).tolist()
        steps = np.floor(np.array(places) * (2 * data.shift_px + 1)).astype(int) - data.shift_px
        shifts = zip(*steps.tolist(), strict=True)
        for position, flip, shift, noises in zip(positions, flips, shifts, noised, strict=True):
            self._go_to(0, position, NOISE)
            noise = self._rng.standard_normal(self.noise_shape, np.float32)
            yield Chance(flip, shift, noise, self._normal(position) if noises else None)

    def _normal(self, position: int) -> NDArray[np.float32]:
        """Normal noise in 4,096 steps: pictures have 256, and `standard_normal` takes twice as
        long (28 us for 12 at 32 px).
        """
        self._go_to(0, position, PIXELS)
        noise = np.empty(self.condition_shape, np.float32)
        flat = noise.reshape(-1)
        for start in range(0, len(flat), AT_ONCE):
            part = flat[start : start + AT_ONCE]
            words = self._bits.random_raw(-(-len(part) // 4)).astype("<u8", copy=False)
            steps = words.view("<u2")[: len(part)] & np.uint16(len(_quantiles()) - 1)
            _quantiles().take(steps, mode="clip", out=part)
        noise *= np.float32(self.data.noised_std)
        return noise

    def _go_to(self, low: int, high: int, purpose: int) -> None:
        """Set the 256-bit counter; a block of it is four 64-bit words."""
        self._start["state"]["counter"][:] = (low, high, 0, purpose)
        self._bits.state = self._start


@cache
def _quantiles() -> NDArray[np.float32]:
    """Of the normal distribution, evenly spaced in probability, with a deviation of just 1."""
    normal = NormalDist()
    values = np.array([normal.inv_cdf((i + 0.5) / 4096) for i in range(4096)])
    quantiles: NDArray[np.float32] = (values / values.std()).astype(np.float32)
    return quantiles


def augment(
    into: NDArray[np.uint8], image: NDArray[np.uint8], flip: bool, shift: tuple[int, int]
) -> None:
    """Mirror and shift one image [C, H, W]; the edge is repeated into the gap."""
    if flip:
        image = image[:, :, ::-1]
    down, right = shift
    rows, rows_of = _overlap(down)
    columns, columns_of = _overlap(right)
    into[:, rows, columns] = image[:, rows_of, columns_of]
    if down > 0:
        into[:, :down] = into[:, down : down + 1]
    elif down < 0:
        into[:, down:] = into[:, down - 1 : down]
    if right > 0:
        into[:, :, :right] = into[:, :, right : right + 1]
    elif right < 0:
        into[:, :, right:] = into[:, :, right - 1 : right]


@cache
def _overlap(by: int) -> tuple[slice, slice]:
    """Where pixels of a shifted axis go, and where they come from."""
    return (slice(by, None), slice(None, -by or None)) if by >= 0 else (slice(by), slice(-by, None))

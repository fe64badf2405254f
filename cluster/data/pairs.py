"""Pairs of images from Parquet: opened, checked, decoded.

A data set is one Parquet file or a folder of them, local or in S3, with the columns `id` and
`label` (string) and `condition` and `target` (struct with `bytes`: a PNG, JPEG or WebP). All
pictures are square and of one size, grey or RGB; a condition has the size of its target.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aalnet.errors import DataError
from aalnet.networks import DataSpec
from cluster.cache import cache_folder
from cluster.data.pictures import open_picture, planes, resized
from cluster.data.rows import OpenFile, Rows, read_rows
from cluster.data.shard_cache import ShardCache
from cluster.data.shards import PICTURES, Index, Shard, list_shards, read_index

AT_ONCE = 8  # shards in S3 whose indices are read side by side
OPEN_FILES = 256  # shards kept open; a process may have 1,024 files
GIB, MIB = 2**30, 2**20
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # condition [Cx, S, S], target [Cy, S, S]


@dataclass(frozen=True)
class _RowGroup:
    shard: Shard
    index: int
    first_row: int
    rows: int


class Pairs:
    """A data set opened for reading. Rows keep the order of the files.

    Decoded pairs stay in memory when all fit into `memory_budget_mib`. Otherwise a pair is decoded
    when it is needed, from the shard's file: where it lies on a local disk, else its copy in the
    cache, as far as `cache_gib` goes. Row groups of shards without a copy are held in memory, the
    last ones that the budget has room for.
    """

    def __init__(
        self, source: str, size_px: int, memory_budget_mib: int = 2048, cache_gib: float = 20
    ) -> None:
        """Raises DataError where the data set is missing or damaged, StoreError where S3 fails."""
        self.source = source
        self.size_px = size_px
        self._budget_bytes = memory_budget_mib * MIB
        self._cache = ShardCache(cache_folder(), int(cache_gib * GIB))
        self._copied: set[Shard] = set()  # those to be read from the cache
        self._opened = lru_cache(OPEN_FILES)(OpenFile)
        self._groups: list[_RowGroup] = []
        self._open(list_shards(source))
        self._group_starts = [group.first_row for group in self._groups]
        self._rows: dict[int, Rows] = {}  # by number of the row group
        self._memory_bytes: OrderedDict[int, int] = OrderedDict()  # of those held in memory
        self._decoded: NDArray[np.uint8] | None = None
        self.channels = (0, 0)  # until the first pair is known
        views = self._views(0)
        self.channels = (len(views[0]), len(views[1]))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spec(self) -> DataSpec:
        """What networks must know of this data set."""
        return DataSpec(self.label_names, *self.channels)

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The label of every row as an index into `names`.

        Raises:
            DataError: a row has a label that `names` lacks.
        """
        numbers = {name: i for i, name in enumerate(names)}
        unknown = [label for label in self.label_names if label not in numbers]
        if unknown:
            raise DataError(
                f"data set `{self.source}` has the label `{unknown[0]}`, which the model was not "
                f"trained on; it knows {', '.join(names)}"
            )
        return np.array([numbers[label] for label in self._labels], dtype=np.int64)

    def require_channels(self, channels: tuple[int, int]) -> None:
        """Raises DataError unless conditions and targets have these many channels."""
        if self.channels != channels:
            raise DataError(
                f"data set `{self.source}` has {self.channels[0]} condition and "
                f"{self.channels[1]} target channels, the model has {channels[0]} and "
                f"{channels[1]}; pack it alike"
            )

    @property
    def fits(self) -> bool:
        """Do all decoded pairs fit the memory budget?"""
        return len(self) * sum(self.channels) * self.size_px**2 <= self._budget_bytes

    def preload(self, threads: int = 2) -> None:
        """Decode everything now, if it fits."""
        if not self.fits or self._decoded is not None:
            return
        decoded = np.empty((len(self), sum(self.channels), self.size_px, self.size_px), np.uint8)

        def fill(row: int) -> None:
            np.concatenate(self._views(row), out=decoded[row])

        for group in self._groups:
            rows = range(group.first_row, group.first_row + group.rows)
            self._pictures(group.first_row)  # reads the group
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, rows))
        self._decoded = decoded
        self._rows.clear()
        self._memory_bytes.clear()

    def pair(self, row: int) -> Pair:
        """condition uint8 [Cx, S, S] and target uint8 [Cy, S, S] of one row."""
        condition, target = self.views(row)
        return np.array(condition, order="C"), np.array(target, order="C")

    def views(self, row: int) -> Pair:
        """The same without a copy, to be read only."""
        if self._decoded is None:
            return self._views(row)
        both = self._decoded[row]
        return both[: self.channels[0]], both[self.channels[0] :]

    def _open(self, shards: list[Shard]) -> None:
        """Learn every shard's row groups, ids and labels."""
        with ThreadPoolExecutor(AT_ONCE if shards[0].store else 1) as pool:
            indices = list(pool.map(self._index, shards))
        ids: list[str | None] = []
        labels: list[str | None] = []
        encoded_bytes = copied_bytes = 0
        for shard, index in zip(shards, indices, strict=True):
            first_row = len(ids)
            ids += index.ids
            labels += index.labels
            for number, (rows, size) in enumerate(index.groups):
                if rows:
                    self._groups.append(_RowGroup(shard, number, first_row, rows))
                first_row += rows
                encoded_bytes += size
            if shard.store is not None or index.compressed:
                # Those beyond the cap are left out: in a random order they would push out the rest.
                copied_bytes += sum(size for _, size in index.groups)
                if copied_bytes <= self._cache.cap_bytes:
                    self._copied.add(shard)
        if shards[0].store is None and encoded_bytes <= self._budget_bytes:
            self._copied.clear()  # memory has room for them
        if not ids:
            raise DataError(f"data set `{self.source}` has no rows; pack it anew")
        self.ids = [one for one in ids if one is not None]
        self._labels = [label for label in labels if label is not None]
        if not len(ids) == len(self.ids) == len(self._labels):
            row = next(i for i in range(len(ids)) if ids[i] is None or labels[i] is None)
            raise DataError(f"data set `{self.source}`: row {row} has no id or no label")
        self.label_names = tuple(sorted(set(self._labels)))

    def _index(self, shard: Shard) -> Index:
        copy = None if shard.store is None else self._cache.existing(shard)
        if copy is not None:
            with contextlib.suppress(DataError):  # damaged: its first row group mends it
                return read_index(copy)
        return read_index(shard)

    def _views(self, row: int) -> Pair:
        """Both pictures of a row, decoded and checked."""
        pictures = []
        for column, data in zip(PICTURES, self._pictures(row), strict=True):
            name = f"{column} of `{self.ids[row]}` in `{self.source}`"
            if data is None:
                raise DataError(f"{name} is empty; pack it anew")
            pictures.append(open_picture(data, name))
        condition, target = pictures
        if condition.width != target.width:
            raise DataError(
                f"`{self.ids[row]}` in `{self.source}`: condition is {condition.width} px, target "
                f"{target.width} px; pairs must be aligned pixel by pixel"
            )
        views = planes(resized(condition, self.size_px)), planes(resized(target, self.size_px))
        channels = (len(views[0]), len(views[1]))
        if channels != self.channels and self.channels != (0, 0):
            raise DataError(
                f"`{self.ids[row]}` in `{self.source}` has {channels[0]} condition and "
                f"{channels[1]} target channels, the first row {self.channels[0]} and "
                f"{self.channels[1]}; all rows must be alike"
            )
        return views

    def _pictures(self, row: int) -> list[bytes | None]:
        """The files of a row's condition and target."""
        number = bisect_right(self._group_starts, row) - 1
        group = self._groups[number]
        try:
            return self._rows_of(number).pictures(row - group.first_row, self._opened)
        except DataError:
            if group.shard not in self._copied:
                raise
        # The copy is damaged, or has left the cache: it is made again.
        self._rows.pop(number, None)
        self._cache.remove(group.shard)
        return self._rows_of(number).pictures(row - group.first_row, self._opened)

    def _rows_of(self, number: int) -> Rows:
        """A row group, read once; of those in memory the last used, while there is room."""
        rows = self._rows.get(number)
        if rows is None:
            group = self._groups[number]
            copied = group.shard in self._copied
            shard = self._cache.copy_of(group.shard) if copied else group.shard
            rows = self._rows[number] = read_rows(shard, group.index, group.rows)
            if rows.shard is None:
                self._memory_bytes[number] = rows.bytes
            sizes = self._memory_bytes
            while len(sizes) > 1 and sum(sizes.values()) > self._budget_bytes:
                del self._rows[sizes.popitem(last=False)[0]]
        elif rows.shard is None:
            self._memory_bytes.move_to_end(number)
        return rows

"""Pairs of images from Parquet: opened, checked, decoded.

A data set is one Parquet file or a folder of them, local or in S3, with the columns `id` and
`label` (string) and `condition` and `target` (struct with `bytes`: a PNG, JPEG or WebP). All
pictures are square and of one size, grey or RGB; a condition has the size of its target.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aalnet.errors import DataError
from aalnet.networks import DataSpec
from cluster.cache import cache_folder
from cluster.data.pictures import open_picture, planes, resized
from cluster.data.row_cache import RowCache
from cluster.data.shards import PICTURES, Index, Shard, list_shards, read_group, read_index

AT_ONCE = 8  # shards in S3 whose indices are read side by side
MAPPED = 4096  # row groups mapped at a time; the kernel allows a process about 65,000
GIB, MIB = 2**30, 2**20
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # condition [Cx, S, S], target [Cy, S, S]


@dataclass(frozen=True)
class _RowGroup:
    shard: Shard
    index: int
    first_row: int
    rows: int


class Rows:
    """The encoded pictures of a row group, in memory or mapped from the local disk."""

    def __init__(self, table: pa.Table, mapped: bool) -> None:
        self.bytes, self.mapped = table.nbytes, mapped
        self._sides = [_Column(table.column(side).chunk(0)) for side in PICTURES]

    def picture(self, side: int, row: int) -> bytes | None:
        """A copy of one picture's bytes: small, and the quickest way to them."""
        column = self._sides[side]
        if column.missing is not None and column.missing[row]:
            return None
        return bytes(column.data[column.ends[row] : column.ends[row + 1]])


class _Column:
    """The buffers of a binary column that is in one piece."""

    def __init__(self, array: pa.LargeBinaryArray) -> None:
        _, offsets, data = array.buffers()
        self.ends = np.frombuffer(offsets, np.int64)[array.offset :].tolist()
        self.data = memoryview(data if data is not None else b"")
        self.missing = array.is_null().to_pylist() if array.null_count else None


class Pairs:
    """A data set opened for reading. Rows keep the order of the files.

    Decoded pairs stay in memory when all fit into `memory_budget_mib`. Otherwise pairs are
    decoded when asked for: from encoded row groups in memory where those of a local data set
    fit, else from row groups on the local disk, `cache_gib` of them.
    """

    def __init__(
        self, source: str, size_px: int, memory_budget_mib: int = 2048, cache_gib: float = 20
    ) -> None:
        self.source = source
        self.size_px = size_px
        self._budget_bytes = memory_budget_mib * MIB
        self._cap_bytes = int(cache_gib * GIB)
        self._cache = RowCache(cache_folder(), self._cap_bytes) if cache_gib else None
        self._groups: list[_RowGroup] = []
        self._open(list_shards(source))
        self._group_starts = [group.first_row for group in self._groups]
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._encoded_bytes = self._mapped_bytes = 0
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
        known = {name: i for i, name in enumerate(names)}
        unknown = [label for label in self.label_names if label not in known]
        if unknown:
            raise DataError(
                f"data set `{self.source}` has the label `{unknown[0]}`, which the model was not "
                f"trained on; it knows {', '.join(names)}"
            )
        return np.array([known[label] for label in self._labels], dtype=np.int64)

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
            self._rows_of(group.first_row)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, rows))
        self._decoded = decoded
        self._kept.clear()

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
        encoded_bytes = 0
        for shard, index in zip(shards, indices, strict=True):
            first_row = len(ids)
            ids += index.ids
            labels += index.labels
            for number, (rows, size) in enumerate(index.groups):
                if rows:
                    self._groups.append(_RowGroup(shard, number, first_row, rows))
                first_row += rows
                encoded_bytes += size
        if not ids:
            raise DataError(f"data set `{self.source}` has no rows; pack it anew")
        self.ids = [one for one in ids if one is not None]
        self._labels = [label for label in labels if label is not None]
        if not len(ids) == len(self.ids) == len(self._labels):
            row = next(i for i in range(len(ids)) if ids[i] is None or labels[i] is None)
            raise DataError(f"data set `{self.source}`: row {row} has no id or no label")
        self.label_names = tuple(sorted(set(self._labels)))
        if shards[0].store is None and encoded_bytes <= self._budget_bytes:
            self._cache = None  # the disk would hold what memory holds anyway

    def _index(self, shard: Shard) -> Index:
        if shard.store is None or self._cache is None:
            return Index(read_index(shard))
        return Index(self._cache.table(f"index {shard.identity}", lambda: read_index(shard))[0])

    def _views(self, row: int) -> Pair:
        """Both pictures of a row, decoded and checked."""
        number, rows = self._rows_of(row)
        at = row - self._group_starts[number]
        pictures = []
        for side, column in enumerate(PICTURES):
            name = f"{column} of `{self.ids[row]}` in `{self.source}`"
            data = rows.picture(side, at)
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

    def _rows_of(self, row: int) -> tuple[int, Rows]:
        """The row group that holds a row, encoded, kept while there is room."""
        number = bisect_right(self._group_starts, row) - 1
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return number, kept
        kept = self._kept[number] = self._read(self._groups[number])
        self._count(kept, 1)
        while len(self._kept) > 1 and (
            self._encoded_bytes > self._budget_bytes
            or self._mapped_bytes > self._cap_bytes
            or len(self._kept) > MAPPED
        ):
            self._count(self._kept.popitem(last=False)[1], -1)
        return number, kept

    def _read(self, group: _RowGroup) -> Rows:
        def fetch() -> pa.Table:
            return read_group(group.shard, group.index, group.rows)

        if self._cache is None:
            table, mapped = fetch(), False
        else:
            table, mapped = self._cache.table(f"{group.index} {group.shard.identity}", fetch)
        return Rows(table, mapped)

    def _count(self, rows: Rows, sign: int) -> None:
        if rows.mapped:
            self._mapped_bytes += sign * rows.bytes
        else:
            self._encoded_bytes += sign * rows.bytes

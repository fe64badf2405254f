"""The encoded pictures of a row group: in memory, or read from a local file where they lie.

Pictures that are not compressed lie in a Parquet file byte by byte. A row group is decoded once to
learn their places; from then on a picture costs one read at an offset. The file is read, not
mapped: the kernel's page cache, which all processes share, serves both, but a file that is cut
short is a short read here and the end of the process (SIGBUS) there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from aalnet.errors import DataError
from cluster.data.shards import PICTURES, Shard

Files = list[bytes | None]  # of one column, None for an empty cell
Places = list[tuple[int, int] | None]  # start and length of each
Chunk = tuple[int, bytes]  # a column of a row group as it stands in the file, and where


class OpenFile(io.FileIO):
    """A local shard, open for reading; closed with its last user."""

    def __init__(self, shard: Shard) -> None:
        """Raises DataError where the file is gone or is no longer the one that was listed."""
        try:
            super().__init__(shard.name)
        except OSError as error:
            raise DataError(f"`{shard.name}` cannot be read: {error.strerror}") from error
        about = os.fstat(self.fileno())
        if (about.st_size, str(about.st_mtime_ns)) != (shard.bytes, shard.modified):
            raise DataError(f"`{shard.name}` has changed since it was opened; start anew")

    def __del__(self) -> None:
        self.close()

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`. Raises DataError where the file has fewer."""
        data = os.pread(self.fileno(), length, start)
        if len(data) < length:
            raise DataError(f"`{self.name}` has been cut short; copy or pack it anew")
        return data


@dataclass(frozen=True)
class Rows:
    """Conditions and targets of a row group, as files in memory or places in a local one."""

    files: tuple[Files, ...] = ()
    places: tuple[Places, ...] = ()
    shard: Shard | None = None  # where the places are

    @property
    def bytes(self) -> int:
        """Memory that the files take."""
        return sum(len(file) for column in self.files for file in column if file is not None)

    def pictures(self, row: int, opened: Callable[[Shard], OpenFile]) -> Files:
        """The files of a row's condition and target. DataError where the shard has changed."""
        if self.shard is None:
            return [column[row] for column in self.files]
        file = opened(self.shard)
        places = [column[row] for column in self.places]
        return [None if place is None else file.read_at(*place) for place in places]


def read_rows(shard: Shard, index: int, rows: int) -> Rows:
    """A row group: places, if its pictures lie uncompressed on the local disk, else files.

    Raises:
        DataError: the shard is damaged, or the group has another number of rows.
        StoreError: the storage failed.
    """
    with shard.opened() as file:
        table = file.read_row_group(index, columns=list(PICTURES))
        if table.num_rows != rows:
            raise OSError(f"{table.num_rows} rows where {rows} should be")
        files = tuple(pc.struct_field(table.column(side), "bytes").to_pylist() for side in PICTURES)
        group = file.metadata.row_group(index)
    if shard.store is None:
        source = OpenFile(shard)
        chunks = [_chunk(source, group, f"{side}.bytes") for side in PICTURES]
        places = tuple(_places(*pair) for pair in zip(chunks, files, strict=True))
        if None not in places:
            return Rows(places=places, shard=shard)  # type: ignore[arg-type]
    return Rows(files)


def _chunk(source: OpenFile, group: pq.RowGroupMetaData, path: str) -> Chunk:
    columns = [group.column(i) for i in range(group.num_columns)]
    column = next(one for one in columns if one.path_in_schema == path)
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    if column.compression != "UNCOMPRESSED":
        return start, b""
    return start, source.read_at(start, column.total_compressed_size)


def _places(chunk: Chunk, files: Files) -> Places | None:
    """The place of each file; None where one does not stand in the chunk as it is.

    They stand in their order, each behind its length (4 bytes) and now and then a page's header;
    one that is there again may stand once, in a dictionary.
    """
    offset, data = chunk
    places: dict[bytes | None, tuple[int, int] | None] = {None: None}
    end = 0
    for file in files:
        if file is not None and file not in places:
            start = end + 4 if data.startswith(file, end + 4) else data.find(file, end)
            if start < 0:
                return None
            places[file], end = (offset + start, len(file)), start + len(file)
    return [places[file] for file in files]

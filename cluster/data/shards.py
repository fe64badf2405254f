"""The Parquet files of a data set, in a folder or in S3: listed, checked, read by row group."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aalnet.errors import DataError
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing, Store

COLUMNS = ("id", "label", "condition", "target")
PICTURES = COLUMNS[2:]
PICTURE_PATHS = tuple(f"{side}.bytes" for side in PICTURES)  # in a file's footer
UNFINISHED = "_unfinished.json"  # stands in a folder that `aalnet data pack` is still filling
S3 = "s3://"


@dataclass(frozen=True)
class Shard:
    """One Parquet file: on a local disk, or behind a store."""

    name: str  # a path or a URI
    bytes: int
    modified: str  # changes whenever the content does
    store: Store | None = None
    key: str = ""

    @property
    def identity(self) -> str:
        """Changes when the file does, so that nothing kept of an older one is taken for it."""
        where = os.path.abspath(self.name) if self.store is None else f"{_endpoint()} {self.name}"
        return f"{where} {self.bytes} {self.modified}"

    @contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """The file. StoreError where the storage fails, DataError where the file is damaged."""
        try:
            source = Path(self.name) if self.store is None else StoreFile(self)
            with pq.ParquetFile(
                source, pre_buffer=self.store is not None, page_checksum_verification=True
            ) as file:
                yield file
        except BlobMissing as error:
            raise DataError(f"`{self.name}` is gone; pack it anew") from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(self._unreadable(error)) from error

    def _unreadable(self, error: Exception) -> str:
        reason = "the file is empty" if self.bytes == 0 else " ".join(str(error).split())
        return f"`{self.name}` is not a whole Parquet file ({reason}); copy or pack it anew"


class StoreFile(io.RawIOBase):
    """A blob as a file that can be read at any place, one request for each read."""

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        assert shard.store is not None
        self._store, self._key, self._bytes = shard.store, shard.key, shard.bytes
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that follow. Raises StoreError."""
        rest = max(self._bytes - self._at, 0)
        length = rest if size is None or size < 0 else min(size, rest)
        data = self._store.read_range(self._key, self._at, length)
        self._at += len(data)
        return data


@dataclass(frozen=True)
class Index:
    """What is known of a shard without its pictures."""

    ids: list[str | None]
    labels: list[str | None]
    groups: list[tuple[int, int]]  # rows and uncompressed bytes of each row group
    compressed: bool  # pictures cannot be read where they lie


def list_shards(source: str) -> list[Shard]:
    """The Parquet files of `source`, sorted by name: a file, a folder, or either in S3.

    Raises:
        DataError: there are none, or the folder is still being packed.
    """
    return _in_s3(source) if source.startswith(S3) else _on_disk(source)


def read_index(shard: Shard) -> Index:
    """Ids, labels and row groups of a shard. Raises DataError, StoreError."""
    with shard.opened() as file:
        _check_schema(shard.name, file.schema_arrow)
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        table = file.read(columns=["id", "label"])
        if table.num_rows != sum(group.num_rows for group in groups):
            raise OSError(f"{table.num_rows} rows where the footer has another number")
        # Names that are not UTF-8 come out here, not where they are used.
        ids, labels = (table.column(name).to_pylist() for name in ("id", "label"))
    return Index(
        ids,
        labels,
        [(group.num_rows, group.total_byte_size) for group in groups],
        any(c.compression != "UNCOMPRESSED" for c in columns if c.path_in_schema in PICTURE_PATHS),
    )


def _on_disk(source: str) -> list[Shard]:
    path = Path(source)
    if path.is_dir():
        _refuse_unfinished(source, [entry.name for entry in path.glob("_*")])
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"data set folder `{source}` holds no .parquet file{_hint(source)}")
    elif path.exists():
        files = [path]
    else:
        raise DataError(
            f"data set `{source}` does not exist (looked in {Path.cwd()}); check data.train and "
            "data.test"
        )
    about = [(file, file.stat()) for file in files]
    return [Shard(str(file), stat.st_size, str(stat.st_mtime_ns)) for file, stat in about]


def _in_s3(source: str) -> list[Shard]:
    whole = source.rstrip("/")
    single = whole.endswith(".parquet")
    folder, _, name = whole.rpartition("/") if single else (whole, "", "")
    store = open_store(folder)
    entries = [entry for entry in store.entries(name) if "/" not in entry.key]
    _refuse_unfinished(source, [] if single else [entry.key for entry in entries])
    shards = [
        Shard(f"{store.uri}/{entry.key}", entry.bytes, repr(entry.modified_s), store, entry.key)
        for entry in entries
        if (entry.key == name if single else entry.key.endswith(".parquet"))
    ]
    if not shards:
        what = "does not exist" if single else f"holds no .parquet file{_hint(source)}"
        raise DataError(f"data set `{source}` {what}; check data.train and data.test")
    return shards


def _endpoint() -> str:
    """Two servers may have a bucket of one name."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _hint(source: str) -> str:
    return f"; after `aalnet data pack` name `{source.rstrip('/')}/train`"


def _refuse_unfinished(source: str, names: list[str]) -> None:
    if UNFINISHED in names:
        raise DataError(
            f"data set `{source}` is not whole: its packing has not ended; "
            "type the same `aalnet data pack` again, it goes on"
        )


def _check_schema(name: str, schema: pa.Schema) -> None:
    for column in COLUMNS:
        if column not in schema.names:
            raise DataError(f"`{name}` has no column `{column}`; it needs {', '.join(COLUMNS)}")
        kind = schema.field(column).type
        picture = column in PICTURES
        if not picture and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"column `{column}` of `{name}` must be string, is {kind}")
        if picture and not (pa.types.is_struct(kind) and _holds_bytes(kind)):
            raise DataError(
                f"column `{column}` of `{name}` must be a struct with `bytes`, is {kind}"
            )


def _holds_bytes(kind: pa.StructType) -> bool:
    at = kind.get_field_index("bytes")
    return at >= 0 and kind[at].type in (pa.binary(), pa.large_binary())

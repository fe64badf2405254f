"""Copies of shards on the local disk, shared by the processes of one machine.

A shard that lies behind S3, or whose pictures are compressed, is written once as a plain Parquet
file: pictures uncompressed, so that each can be read where it lies, and a checksum in every page.
The file is written under another name and renamed, so that it is whole or is not there. Copies
opened longest ago go first when the cache is full; whoever has one open can still read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.data.shards import COLUMNS, Shard

ENDING, PARTIAL = ".parquet", ".partial"
AT_ONCE = 4  # row groups fetched side by side: one stream of S3 is slow, a group is 8 MiB
ABANDONED_S = 3600.0  # age of an unfinished file that nobody writes any more


class ShardCache:
    """Copies of shards, at most `cap_bytes` of them."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder, self.cap_bytes = folder / "shards", cap_bytes
        self._writable = True

    def existing(self, shard: Shard) -> Shard | None:
        """The copy that lies here already, looked at by name alone: reading it finds damage."""
        path = self._path(shard)
        try:
            about = path.stat()
            os.utime(path, ns=(time.time_ns(), about.st_mtime_ns))  # opened now: it goes last
        except OSError:
            return None
        return Shard(str(path), about.st_size, str(about.st_mtime_ns))

    def copy_of(self, shard: Shard) -> Shard:
        """The copy, made now if need be; the shard itself where the disk takes no more.

        Raises StoreError or DataError where the shard cannot be read.
        """
        copy = self.existing(shard)
        if copy is not None or not self._writable:
            return copy or shard
        path = self._path(shard)
        unfinished = path.with_suffix(PARTIAL)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(unfinished) as file:
                try:
                    if not path.exists():  # else another process has made it meanwhile
                        file.truncate(0)
                        _write_plain(shard, file)
                        os.replace(unfinished, path)
                finally:
                    unfinished.unlink(missing_ok=True)
            self._make_room(path)
        except OSError as error:
            self._stop_writing(error)
        return self.existing(shard) or shard

    def remove(self, shard: Shard) -> None:
        """Remove a damaged copy."""
        with contextlib.suppress(OSError):
            self._path(shard).unlink()

    def _path(self, shard: Shard) -> Path:
        key = hashlib.sha256(shard.identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.folder / f"{key}{ENDING}"

    def _stop_writing(self, error: OSError) -> None:
        """A full or forbidden disk: say so once, and read from the source from now on."""
        if self._writable:
            self._writable = False
            reason = error.strerror or str(error)
            print(
                f"warning: the cache {self.folder} cannot be written ({reason}); data are read "
                "without it. Free some space or set AALNET_CACHE",
                file=sys.stderr,
                flush=True,
            )

    def _make_room(self, newest: Path) -> None:
        """Remove the copies opened longest ago until the cap is kept, and abandoned files."""
        copies: list[tuple[float, int, Path]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process has removed it
                    about = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(ENDING):
                        copies.append((about.st_atime, about.st_size, Path(entry.path)))
                    elif about.st_mtime < time.time() - ABANDONED_S:
                        os.unlink(entry.path)
        total_bytes = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total_bytes > self.cap_bytes and path != newest:
                path.unlink(missing_ok=True)
                total_bytes -= size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file at `path`, for this process alone; the lock ends with its process."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is(file, path):  # else its writer has renamed it while this one waited
                yield file
                return


def _is(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_plain(shard: Shard, file: IO[bytes]) -> None:
    """Write a shard with the same row groups, pictures uncompressed and pages with checksums."""
    with shard.opened() as source:
        fields, groups = source.schema_arrow, source.num_row_groups
    schema = pa.schema([fields.field(name) for name in COLUMNS])
    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        pq.ParquetWriter(
            file, schema, compression="NONE", use_dictionary=False, write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):  # fmt: skip
        for first in range(0, groups, AT_ONCE):
            window = range(first, min(first + AT_ONCE, groups))
            for table in pool.map(partial(_group, shard), window):
                writer.write_table(table, max(table.num_rows, 1))
    file.flush()


def _group(shard: Shard, index: int) -> pa.Table:
    with shard.opened() as file:
        return file.read_row_group(index, list(COLUMNS)).select(COLUMNS)

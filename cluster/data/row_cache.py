"""Tables kept on the local disk, memory-mapped, shared by the processes of one machine.

A table is one file: an Arrow IPC file and a trailer with its length and checksum. It is written
under another name and renamed, so at any moment a process may be killed, and what is found is
whole or is fetched again. The files opened longest ago go first when the cache is full; whoever
has one mapped keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

TRAILER = struct.Struct("<8sQI")  # magic, bytes before it, their CRC-32
MAGIC = b"AALROWS1"
ENDING, PARTIAL = ".arrow", ".partial"
LOCKS = 64  # files that say who fetches; keys share them
ABANDONED_S = 3600.0  # age of an unfinished file that nobody writes any more
FILL_SHARE = 0.9  # of the cap, left after some have gone
SCAN_SHARE = 1 / 64  # of the cap, written between two looks at the whole folder


class RowCache:
    """Tables by key, at most `cap_bytes` of them."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder = folder / "rows"
        self.cap_bytes = cap_bytes
        self._writes = True
        self._unseen_bytes = cap_bytes  # written since the last look: the first write looks

    def table(self, identity: str, fetch: Callable[[], pa.Table]) -> tuple[pa.Table, bool]:
        """The table of this identity, kept or fetched; and whether it is mapped from the disk."""
        key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        path = self.folder / f"{key}{ENDING}"
        found = _mapped(path)
        if found is not None:
            return found, True
        if not self._writes:
            return fetch(), False
        with self._alone(key):
            found = _mapped(path)  # another process has fetched it meanwhile
            if found is not None:
                return found, True
            table = fetch()
            if self._keep(path, table):
                found = _mapped(path)
        if found is None:
            return table, False
        self._make_room(path)
        return found, True

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Keep other processes from fetching the same; the lock ends with its process."""
        lock = self.folder / f"{int(key[:8], 16) % LOCKS:02d}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._stop_writing(error)
            yield
            return
        try:
            with contextlib.suppress(OSError):  # a disk without locks: both fetch, no harm
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _keep(self, path: Path, table: pa.Table) -> bool:
        if not self._writes:
            return False
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(PARTIAL, f".{path.stem}.", path.parent)
            with os.fdopen(handle, "wb") as file:
                self._unseen_bytes += _write(file, table)
            os.replace(temporary, path)
            return True
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            self._stop_writing(error)
            return False

    def _stop_writing(self, error: OSError) -> None:
        """A full or forbidden disk: say so once, and fetch from now on."""
        if self._writes:
            self._writes = False
            reason = error.strerror or str(error)
            print(
                f"warning: the cache {self.folder} cannot be written ({reason}); data are read "
                "without it. Free some space or set AALNET_CACHE",
                file=sys.stderr,
                flush=True,
            )

    def _make_room(self, newest: Path) -> None:
        """Remove the files opened longest ago until the cap is kept, and abandoned ones."""
        if self._unseen_bytes < self.cap_bytes * SCAN_SHARE:
            return
        self._unseen_bytes = 0
        abandoned_s = time.time() - ABANDONED_S
        files: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process has removed it
                    about = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(ENDING):
                        files.append((about.st_mtime, about.st_size, Path(entry.path)))
                    elif entry.name.endswith(PARTIAL) and about.st_mtime < abandoned_s:
                        os.unlink(entry.path)
        total_bytes = sum(size for _, size, _ in files)
        if total_bytes <= self.cap_bytes:
            return
        for _, size, path in sorted(files):
            if total_bytes <= self.cap_bytes * FILL_SHARE:
                return
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()
                total_bytes -= size


def _write(file: IO[bytes], table: pa.Table) -> int:
    """Write the table and its trailer; the bytes of both."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    file.write(body)
    file.write(TRAILER.pack(MAGIC, body.size, zlib.crc32(body)))
    return int(body.size) + TRAILER.size


def _mapped(path: Path) -> pa.Table | None:
    """The table in a file, without a copy; None where there is no file or it is not whole."""
    try:
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        magic, length, crc = TRAILER.unpack(memoryview(whole)[-TRAILER.size :])
        body = whole.slice(0, whole.size - TRAILER.size)
        if (magic, length, crc) != (MAGIC, body.size, zlib.crc32(body)):
            return None
        os.utime(path)  # opened now: it goes last
        return pa.ipc.open_file(body).read_all()
    except (OSError, pa.ArrowException, struct.error):
        return None

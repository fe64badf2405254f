"""A log of lines that a user finds as one blob: a folder appends to it, an object store cannot.

There each append is a segment below `<key without its ending>/<generation>/` (segments.py), and
the log is the newest generation that has its first line, or else the blob. So one put starts the
log anew without its last part, and one delete leaves it to the blob, which `finish` has put whole.
"""

from __future__ import annotations

import contextlib
import time

from cluster.storage.segments import LOOKS, Segment, SegmentedLog
from cluster.storage.store import BlobMissing, Store, StoreError

TAIL_BYTES = 256  # what was read last: it tells a blob that has grown from one put anew


class LogFile:
    """The log at `key`, for one writer that has read it, or a reader that looks again and again."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._folder = key.rpartition(".")[0]
        self._generation = 0
        self._segments: SegmentedLog | None = None  # None: the blob is the log
        self._bytes, self._tail = 0, b""  # of the whole lines so far
        self._torn = False  # half a line lies behind them
        self._waiting = b""  # an append that failed

    def read(self) -> bytes:
        """The whole lines that are new since the last read; all of them where it was cut since."""
        for _ in range(LOOKS):
            generation, keys = self._newest()
            if generation is None:
                self._segments = None
                return self._advance(self._read_blob())
            if self._segments is None or generation != self._generation:
                self._open(generation)
                self._bytes, self._tail = 0, b""
            assert self._segments is not None
            text = b"".join(piece for _, piece in self._segments.read(keys))
            if self._segments.lines:  # else it was removed since it was listed
                return self._advance(text)
        return b""

    def append(self, lines: bytes) -> None:
        """Add whole lines to what was read; b"": those that wait.

        Raises:
            StoreError: it failed; they wait, and go first with the next append.
        """
        self._waiting += lines
        if not self._waiting:
            if self._segments is not None:
                self._segments.append(b"")
        elif self._store.appends:
            self._append_to_blob()
        elif self._segments is None:
            self.replace(self._blob()[: self._bytes] + self._waiting)
        else:
            lines, self._waiting = self._waiting, b""
            self._advance(lines)
            self._segments.append(lines)  # which keeps them where it fails

    def replace(self, text: bytes) -> None:
        """Put the whole log anew, in one step. Raises StoreError: it may be called again."""
        before = self._generations()
        if self._store.appends or not text:
            self._store.write(self._key, text)
            self._segments = None
        else:
            newest = max((int(name) for name in before), default=0)
            self._open(max(newest + 1, int(time.time() * 1000)))  # no follower knows the number
            assert self._segments is not None
            self._segments.append(text)
        self._bytes, self._tail, self._waiting, self._torn = 0, b"", b"", False
        self._advance(text)
        with contextlib.suppress(StoreError):  # older ones are void; the end removes them
            self._remove(before)

    def finish(self) -> None:
        """Put the blob whole, where the log lies in segments. Raises StoreError."""
        if self._segments is not None:
            self._segments.settle()
            self._store.write(self._key, LogFile(self._store, self._key).read())
            self._remove(self._generations())
            self._segments = None

    def _append_to_blob(self) -> None:
        self.finish()  # segments that came with a copy of a bucket
        try:
            if self._torn:  # by a writer that died, or a full disk
                before = self._store.read_range(self._key, 0, self._bytes) if self._bytes else b""
                self._store.write(self._key, before + self._waiting)
            else:
                self._store.append(self._key, self._waiting)
        except StoreError:
            self._torn = True
            raise
        self._advance(self._waiting)
        self._waiting = b""

    def _read_blob(self) -> bytes:
        """What follows the lines so far, in the blob; all of it where they are not in it."""
        if self._bytes:
            with contextlib.suppress(BlobMissing):
                start = self._bytes - len(self._tail)
                length = self._store.size(self._key) - start
                text = self._store.read_range(self._key, start, length) if length > 0 else b""
                if text.startswith(self._tail):
                    return text[len(self._tail) :]
        self._bytes, self._tail = 0, b""
        return self._blob()

    def _blob(self) -> bytes:
        try:
            return self._store.read(self._key)
        except BlobMissing:
            return b""

    def _advance(self, text: bytes) -> bytes:
        """The whole lines of a text that follows those so far."""
        end = text.rfind(b"\n") + 1
        lines, self._torn = text[:end], end < len(text)
        self._bytes += end
        self._tail = (self._tail + lines[-TAIL_BYTES:])[-TAIL_BYTES:]
        return lines

    def _open(self, generation: int) -> None:
        self._generation = generation
        self._segments = SegmentedLog(self._store, f"{self._folder}/{generation}")

    def _newest(self) -> tuple[int | None, list[str]]:
        """The newest generation that has its first line, and the keys of its segments."""
        groups = self._generations()
        whole = [int(name) for name, keys in groups.items() if any(map(_has_first_line, keys))]
        return (max(whole), groups[str(max(whole))]) if whole else (None, [])

    def _generations(self) -> dict[str, list[str]]:
        """Keys of all segments by generation."""
        groups: dict[str, list[str]] = {}
        for key in self._store.keys(f"{self._folder}/"):
            name = key.removeprefix(f"{self._folder}/").partition("/")[0]
            if name.isdecimal():
                groups.setdefault(name, []).append(key)
        return groups

    def _remove(self, generations: dict[str, list[str]]) -> None:
        for name in sorted(generations, key=int):  # the newest is the log until the last
            SegmentedLog(self._store, f"{self._folder}/{name}").remove()


def _has_first_line(key: str) -> bool:
    segment = Segment.parse(key)
    return segment is not None and segment.first == 0

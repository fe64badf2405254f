"""A log of lines in numbered segments: every append is one new blob, and none is written over.

    <folder>/<first>.jsonl                  one append, named by the number of its first line
    <folder>/<first>-<end>-<level>.jsonl    joined segments: the lines from `first` to before `end`

The next segment's name is known and it is created only if absent, so of two writers one wins. Each
FAN_IN segments in a row are joined into one of the next level, in the background, LEVELS times
over: a byte is put 1 + LEVELS times at most, however long the log grows. What a joined segment
holds is removed after it is there, so a reader, or who comes after a crash, finds every line.
"""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from cluster.storage.store import BlobExists, BlobMissing, Store, StoreError

FAN_IN, LEVELS = 64, 2
AT_ONCE = 8  # segments that are read, or removed
LOOKS = 5  # of a reader whose listing is older than a join
# `until-<end>`: lines 0 to before `end`, as releases before segments had levels joined them.
NAME = re.compile(
    r"(?:until-(?P<until>\d+)|(?P<first>\d+)(?:-(?P<end>\d+)-(?P<level>\d+))?)\.jsonl"
)


class LogTaken(StoreError):
    """Another process has written to the log: this one must not any more."""


@dataclass(frozen=True)
class Segment:
    """One blob of the log, as its name tells."""

    key: str
    first: int  # number of its first line
    end: int  # number of the line after its last; of one append, at least that
    level: int  # 0: one append

    @classmethod
    def parse(cls, key: str) -> Segment | None:
        """The segment of a key; None where it is none."""
        name = NAME.fullmatch(key.rpartition("/")[2])
        if name is None:
            return None
        if name["until"]:
            return cls(key, 0, int(name["until"]), LEVELS)
        first = int(name["first"])
        return cls(key, first, int(name["end"] or first + 1), int(name["level"] or 0))


class SegmentedLog:
    """The log below `folder`. One writer at a time, in one thread; any number of readers."""

    def __init__(self, store: Store, folder: str) -> None:
        self.lines = 0  # read or appended so far: the next line's number
        self.complete = True  # the last read reached all that is there
        self._store, self._folder = store, folder
        self._waiting: list[bytes] = []  # appends that failed, each as it was first tried
        self._texts: dict[int, bytes] = {}  # of own appends that are not joined, by first line
        self._singles = 0  # segments of level 0
        self._joining: threading.Thread | None = None

    def read(self, keys: Sequence[str] | None = None) -> list[tuple[str, bytes]]:
        """Keys and lines of what is new since the last read; `keys`: a listing that is there.

        Gives a whole prefix of the log always; `complete` tells whether a part is missing.
        """
        pieces, line = [], self.lines
        for _ in range(LOOKS):
            segments = self._segments(keys)
            path = _path(segments, line)
            for segment, text in zip(path, self._texts_of(path), strict=True):
                if text is None or segment.first > line:
                    break
                pieces.append((segment.key, text.split(b"\n", line - segment.first)[-1]))
                line = max(line, segment.first + text.count(b"\n"))
            self.complete = all(segment.end <= line for segment in segments)
            if self.complete or (pieces and not pieces[-1][1].endswith(b"\n")):  # or damaged
                break
            keys = None
        self._singles = sum(segment.level == 0 for segment in segments)
        self.lines = line
        return pieces

    def append(self, lines: bytes) -> None:
        """Add whole lines as one segment: all of them, or none.

        Raises:
            StoreError: it failed; they wait, and go first with the next append.
            LogTaken: another writer has the next number.
        """
        if lines:
            self._waiting.append(lines)
        while self._waiting:
            # The same bytes again where a reply was lost: `create` takes them for ours.
            text = self._waiting[0]
            try:
                self._store.create(f"{self._folder}/{self.lines:012d}.jsonl", text)
            except BlobExists as error:
                raise LogTaken(
                    f"another process has written to {self._store.uri}/{self._folder}; this one "
                    "ends"
                ) from error
            self._texts[self.lines] = self._waiting.pop(0)
            self.lines += text.count(b"\n")
            self._singles += 1
        if self._singles >= FAN_IN:
            self.settle()  # else they would be ever more where appending is quicker than joining
            self._singles = 0
            self._joining = threading.Thread(target=self._join, name="join", daemon=True)
            self._joining.start()

    def remove(self) -> None:
        """Remove it all; a reader sees the whole log until its first line goes, then none."""
        self.settle()
        segments = self._segments()
        for segment in sorted(segments, key=lambda segment: (segment.first, segment.end)):
            self._store.delete(segment.key)

    def settle(self) -> None:
        """Wait for a join under way."""
        if self._joining is not None:
            self._joining.join()

    def _join(self) -> None:
        try:
            for level in range(LEVELS):
                segments = self._segments()
                groups = groupby(_path(segments, 0), key=lambda segment: segment.level)
                parts = next((list(each) for at, each in groups if at == level), [])
                if len(parts) < FAN_IN:
                    continue
                text, first = bytearray(), parts[0].first
                for part in parts:
                    if part.first != first + text.count(b"\n"):
                        return  # two writers' joins overlap: it is left as it is
                    text += self._texts.get(part.first) or self._store.read(part.key)
                end = first + text.count(b"\n")
                key = f"{self._folder}/{first:012d}-{end:012d}-{level + 1}.jsonl"
                self._store.create(key, bytes(text))
                # And what a join before that was cut off has left.
                held = [each for each in segments if each.level <= level and each.first < end]
                for segment in held:
                    self._texts.pop(segment.first, None)
                with ThreadPoolExecutor(AT_ONCE) as removers:
                    list(removers.map(self._store.delete, [each.key for each in held]))
        except StoreError:  # nothing is lost: it is done again with the next
            self._singles += FAN_IN // 2

    def _segments(self, keys: Iterable[str] | None = None) -> list[Segment]:
        keys = self._store.keys(f"{self._folder}/") if keys is None else keys
        return [segment for key in keys if (segment := Segment.parse(key)) is not None]

    def _texts_of(self, segments: Sequence[Segment]) -> list[bytes | None]:
        def text(segment: Segment) -> bytes | None:
            try:
                return self._store.read(segment.key)
            except BlobMissing:  # joined, and removed since it was listed
                return None

        if len(segments) < 2:
            return [text(segment) for segment in segments]
        with ThreadPoolExecutor(AT_ONCE) as readers:
            return list(readers.map(text, segments))


def _path(segments: Sequence[Segment], line: int) -> list[Segment]:
    """The segments that lead on from a line, the largest first where several hold it."""
    path: list[Segment] = []
    singles = {segment.first: segment for segment in segments if segment.level == 0}
    joined = [segment for segment in segments if segment.level > 0]
    starts = sorted({segment.first for segment in segments})
    while True:
        holding = [each for each in joined if each.first <= line < each.end]
        segment = max(holding, key=lambda each: each.end, default=singles.get(line))
        if segment is None:
            return path
        path.append(segment)
        following = bisect.bisect_right(starts, line)
        if segment.level > 0:
            line = segment.end
        elif following < len(starts):
            line = starts[following]
        else:
            return path

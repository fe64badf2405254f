"""An Optuna journal in a storage: a folder or S3, where nothing can be appended.

The journal is a chain of blobs `<folder>/<number>.jsonl`; the name is the number of the blob's
first line, so the next blob's name is known, and of two writers only one can create it. Now and
then all lines so far are put into `until-<number>.jsonl` besides, and what it holds is removed: no
blob is ever written over. Its writer holds the campaign's lease; anybody may read.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from aalnet.errors import CheckpointError
from cluster.storage.store import BlobExists, BlobMissing, Store, StoreError

LONGEST_CHAIN = 1024  # blobs; then they become one, in the background
AT_ONCE = 8  # blobs that are read
UNTIL = "until-"


class JournalTaken(StoreError):
    """Somebody else has written to the journal: this process must not any more."""


class StoreJournal(BaseJournalBackend):
    """One writer's journal, or a reader's that looks for what is new whenever it is asked."""

    def __init__(self, store: Store, folder: str, *, writes: bool) -> None:
        self._store, self._folder, self._writes = store, folder, writes
        self._lines: list[dict[str, Any]] = []
        self._text = bytearray()  # of the lines that are stored
        self._stored = 0  # lines that are stored
        self._batches: list[bytes] = []  # of lines that are not yet, as each was first tried
        self._batched = 0  # lines that are stored or in a batch
        self._chain: list[int] = []  # numbers of its blobs, stale ones too
        self._held = 0  # depth of `together`
        self._lock = threading.RLock()
        self._joining: threading.Thread | None = None
        self._load()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        with self._lock:
            if not self._writes:
                self._load()
            return self._lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._lock:
            if not self._writes:
                raise CheckpointError("this campaign's study is open for reading only")
            self._lines += logs
            if not self._held:
                self._flush()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is logged in the block is stored at its end as one blob: all of it, or nothing.

        Raises:
            StoreError: it could not be; it is tried again with what comes next.
            JournalTaken: it never will be.
        """
        with self._lock:
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1
                if not self._held:
                    self._flush()

    def _flush(self) -> None:
        if new := self._lines[self._batched :]:
            self._batches.append(_encoded(new))
            self._batched = len(self._lines)
        while self._batches:
            # The same bytes again where a reply was lost: `create` takes them for ours.
            batch = self._batches[0]
            try:
                self._store.create(self._key(self._stored), batch)
            except BlobExists as error:
                raise JournalTaken(
                    f"another process has written to {self._store.uri}/{self._folder}; this one "
                    "ends"
                ) from error
            self._chain.append(self._stored)
            self._stored += batch.count(b"\n")
            self._text += self._batches.pop(0)
        idle = self._joining is None or not self._joining.is_alive()
        if len(self._chain) > LONGEST_CHAIN and idle:
            stale, self._chain = self._chain, []
            work = (self._stored, bytes(self._text), stale)
            self._joining = threading.Thread(target=self._join, args=work, daemon=True)
            self._joining.start()

    def _join(self, number: int, text: bytes, stale: list[int]) -> None:
        """Put the first `number` lines into one blob, and remove those that hold them, too."""
        try:
            before = [n for n in self._numbers()[0] if n < number]
            self._store.create(self._key(number, UNTIL), text)
            for key in [*(self._key(n) for n in stale), *(self._key(n, UNTIL) for n in before)]:
                self._store.delete(key)  # one after the other: the study's calls go first
        except StoreError:  # nothing is lost: it is done again with the next
            with self._lock:
                self._chain = stale + self._chain

    def _load(self) -> None:
        """Read what is new, in the chain's order; raises CheckpointError where it is broken."""
        joined, chain = self._numbers()
        known = self._stored
        newest = [number for number in joined[-1:] if number > known]
        after = max([known, *newest])
        later = [number for number in chain if number >= after]
        keys = [*(self._key(n, UNTIL) for n in newest), *(self._key(n) for n in later)]
        with ThreadPoolExecutor(AT_ONCE) as readers:
            texts = list(readers.map(self._read, keys))
        for number, key, text in zip([*([known] * len(newest)), *later], keys, texts, strict=True):
            if text is None or number != self._stored:
                if self._writes:
                    raise CheckpointError(
                        f"{self._store.uri}/{self._folder} misses lines of the study's journal "
                        f"from {self._stored} on; restore them, or choose another name"
                    )
                break  # a join is under way: the next look sees it whole
            lines = self._parsed(key, text)[known if number < after else 0 :]
            self._lines += lines
            self._stored += len(lines)
            self._text = bytearray(text) if number < after else self._text + text
        self._batched = self._stored
        self._chain = chain

    def _numbers(self) -> tuple[list[int], list[int]]:
        """Of the joined blobs and of the chain's, each ascending."""
        names = [Path(key).stem for key in self._store.keys(f"{self._folder}/")]
        joined = [name.removeprefix(UNTIL) for name in names if name.startswith(UNTIL)]
        return tuple(sorted(int(n) for n in each if n.isdecimal()) for each in (joined, names))  # type: ignore[return-value]

    def _read(self, key: str) -> bytes | None:
        try:
            return self._store.read(key)
        except BlobMissing:
            return None

    def _parsed(self, key: str, text: bytes) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            raise CheckpointError(
                f"{self._store.uri}/{key} is damaged: {error}; restore it, or choose another name"
            ) from error

    def _key(self, number: int, kind: str = "") -> str:
        return f"{self._folder}/{kind}{number:012d}.jsonl"


def _encoded(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()

"""An Optuna journal in a storage, as a segmented log (cluster/storage/segments.py).

In a folder too: a group of lines is stored whole or not at all there, and of two writers one
learns that it lost. The writer holds the campaign's lease; anybody may read.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from aalnet.errors import CheckpointError
from cluster.storage.segments import SegmentedLog
from cluster.storage.store import Store


class StoreJournal(BaseJournalBackend):
    """One writer's journal, or a reader's that looks for what is new at every call.

    Raises:
        CheckpointError: it is damaged, or misses lines.
    """

    def __init__(self, store: Store, folder: str, *, writes: bool) -> None:
        self._log, self._writes, self._uri = SegmentedLog(store, folder), writes, store.uri
        self._lines: list[dict[str, Any]] = []
        self._passed_on = 0  # lines that the log has, or keeps for the next try
        self._depth = 0  # of `together`
        self._lock = threading.RLock()
        self._load()
        if writes and not self._log.complete:
            raise CheckpointError(
                f"{self._uri}/{folder} misses lines of the study's journal from "
                f"{len(self._lines)} on; restore them, or choose another name"
            )

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The lines from a number on."""
        with self._lock:
            if not self._writes:
                self._load()
            return self._lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines. Raises StoreError, LogTaken, and CheckpointError where it is a reader's."""
        with self._lock:
            if not self._writes:
                raise CheckpointError("this campaign's study is open for reading only")
            self._lines += logs
            if not self._depth:
                self._flush()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is logged in the block is stored at its end as one blob: all of it, or nothing.

        Raises:
            StoreError: it could not be; it is tried again with what comes next.
            LogTaken: it never will be.
        """
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._flush()

    def _flush(self) -> None:
        lines = self._lines[self._passed_on :]
        self._passed_on = len(self._lines)
        self._log.append("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _load(self) -> None:
        for key, text in self._log.read():
            try:
                self._lines += [json.loads(line) for line in text.splitlines()]
            except ValueError as error:
                self._log.lines = len(self._lines)  # told again at the next call
                raise CheckpointError(
                    f"{self._uri}/{key} is damaged: {error}; restore it, or choose another name"
                ) from error
        self._passed_on = len(self._lines)

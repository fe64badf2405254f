"""The log of a run while it trains: lines go out in the background, and an outage loses none.

A folder takes each line as it comes. An object store cannot append, so there the whole log is
put again, every few seconds, and the less often the longer it is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from cluster.runs.run import Record, Run, parse_records
from cluster.storage.store import BlobMissing, StoreError

PUT_EVERY_S = 5.0
PUT_BYTES_PER_S = 2**20  # a longer log is put less often
AGAIN_S = 2.0  # between two tries while the storage fails


class Journal:
    """Opens metrics.jsonl as it was at `images`; `dropped` is what had been logged beyond.
    `see` is told of every record that is logged from now on.

    The only writer while it is open. Safe to use from several threads.

    Raises:
        StoreError: the log cannot be read.
    """

    def __init__(
        self, run: Run, images: int, see: Callable[[Record], None] = lambda record: None
    ) -> None:
        self._run, self._key, self._see = run, run.key("metrics.jsonl"), see
        try:
            before = run.store.read(self._key)
        except BlobMissing:
            before = b""
        records = parse_records(before)
        self.kept = [record for record in records if record["images"] <= images]
        self.dropped = [record for record in records if record["images"] > images]
        self._text = bytearray().join(_line(record) for record in self.kept)
        self._stored = len(before) if self._text == before else -1  # -1: put it all anew
        self._put_at_s = 0.0
        self._closing = False
        self._lock = threading.Lock()  # of the text
        self._putting = threading.Lock()  # of the storage
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        """Add one record, stamped with the time. Never waits for the storage."""
        record = {**record, "time_s": round(time.time(), 3)}
        with self._lock:
            self._text += _line(record)
        self._wake.set()
        self._see(record)

    def records(self) -> list[Record]:
        """Everything in the log by now."""
        with self._lock:
            return parse_records(bytes(self._text))

    def flush(self) -> None:
        """Put everything that was logged so far. Raises StoreError."""
        with self._putting:
            stored = self._stored
            if stored == len(self._text):
                return
            adds = self._run.store.appends and stored >= 0
            with self._lock:
                data = bytes(self._text[stored:] if adds else self._text)
            self._stored = -1  # a failure may leave half a line: the next try puts it all anew
            if adds:
                self._run.store.append(self._key, data)
                self._stored = stored + len(data)
            else:
                self._run.store.write(self._key, data)
                self._stored = len(data)
            self._put_at_s = time.monotonic()

    def close(self) -> None:
        """Put what is left. Raises StoreError."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            while not self._closing and (wait_s := self._due_s()) > 0:
                self._wake.wait(wait_s)
                self._wake.clear()
            if self._closing:
                return
            try:
                self.flush()
            except StoreError:  # kept for the next try; the saver tells how long this may go on
                time.sleep(AGAIN_S)
                self._wake.set()

    def _due_s(self) -> float:
        """Seconds until the next put."""
        if self._run.store.appends:
            return 0.0
        every_s = max(PUT_EVERY_S, len(self._text) / PUT_BYTES_PER_S)
        return self._put_at_s + every_s - time.monotonic()


def _line(record: Record) -> bytes:
    return (json.dumps(record) + "\n").encode()

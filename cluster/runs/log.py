"""The log of a run while it trains: lines go out in the background, and an outage loses none.

A folder takes each line as it comes; an object store takes those of a few seconds as one segment.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from cluster.runs.run import Record, Run, parse_records
from cluster.storage.store import StoreError

PUT_EVERY_S = 5.0
AGAIN_S = 2.0  # between two tries while the storage fails


class RunLog:
    """Opens metrics.jsonl as it was at `images`; `see` gets every record logged from now on.

    `history` is what had been logged up to there, `void` what had been logged beyond. The only
    writer while it is open. Safe to use from several threads.

    Raises:
        StoreError: the log cannot be read.
    """

    def __init__(
        self, run: Run, images: int, see: Callable[[Record], None] = lambda record: None
    ) -> None:
        self._appends, self._file, self._see = run.store.appends, run.log_file(), see
        before = self._file.read()
        records = parse_records(before)
        self.history = [record for record in records if record["images"] <= images]
        self.void = [record for record in records if record["images"] > images]
        self._text = bytearray().join(_line(record) for record in self.history)
        self._passed_on = len(before) if self._text == before else -1  # -1: replace it all
        self._put_at_s = 0.0
        self._closing = False
        self._lock = threading.Lock()  # of the text
        self._putting = threading.Lock()  # of the storage
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="run-log", daemon=True)
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
            with self._lock:
                lines, end = bytes(self._text[max(self._passed_on, 0) :]), len(self._text)
            if self._passed_on < 0:
                self._file.replace(lines)
                self._passed_on = end
            else:
                self._passed_on = end  # where it fails the lines wait in there
                self._file.append(lines)
            self._put_at_s = time.monotonic()

    def close(self) -> None:
        """Put what is left, and metrics.jsonl whole. Raises StoreError; may be called again."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self.flush()
        self._file.finish()

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
            except StoreError:  # tried again; the saver tells how long this may go on
                time.sleep(AGAIN_S)
                self._wake.set()

    def _due_s(self) -> float:
        """Seconds until the next put."""
        return 0.0 if self._appends else self._put_at_s + PUT_EVERY_S - time.monotonic()


def _line(record: Record) -> bytes:
    return (json.dumps(record) + "\n").encode()

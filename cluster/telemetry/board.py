"""TensorBoard's event files beside metrics.jsonl: scalars and sample grids, by images seen.

Written into the run's storage, so `tensorboard --logdir STORAGE/runs` reads a folder or s3://.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aalnet.errors import ConfigError
from cluster.runs.figures import FIGURE_ORDER, floor_of, kid_name
from cluster.runs.run import Record, Run
from cluster.storage.store import StoreError

FLUSH_S = 10.0
PUT_S = 120.0  # where each time makes a file
WAITING_BYTES = 32 * 2**20  # events that a failing storage keeps waiting; older ones go
FOLDER = "tensorboard"
RGB = 3  # as TensorBoard counts channels


class Board:
    """Takes records and pictures; a thread of its own writes them. Where the storage does not
    take them, `warn` says so, once.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, run: Run, images: int, warn: Callable[[str], None]) -> None:
        try:
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import masked_crc32c
        except ModuleNotFoundError as error:
            raise ConfigError(
                "telemetry.tensorboard needs tensorboardX; pip install 'aalnet-cloud[train]', or "
                "set telemetry.tensorboard=false"
            ) from error
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._checksum: Callable[[bytes], int] = masked_crc32c
        self._run, self._warn, self._warned = run, warn, False
        self._file, self._part, self._begun = f"events.out.tfevents.{int(time.time())}", 0, False
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of those that wait
        self._lock, self._done = threading.Lock(), threading.Event()
        # What was logged beyond `images` is void: a run that lost work logs it again.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(images, session_log=session)
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._thread.start()

    def see(self, record: Record) -> None:
        """Add the scalars of a record."""
        values: dict[str, float] = {}
        if record["kind"] == "train":
            values = {f"train/{name}": value for name, value in record["terms"].items()}
            values |= {f"speed/{name}": record[name] for name in
                       ("step_s", "data_s", "images_per_s")}  # fmt: skip
            values["train/lr"] = record["lr"]
        elif record["kind"] == "evaluation":
            for name in (kid_name(record), *FIGURE_ORDER):
                if name and record.get(name) is not None:
                    values[f"evaluation/{name}"] = record[name]
                    if (floor := floor_of(record, name)) is not None:
                        values[f"condition/{name}"] = floor
        found = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        if found:
            self._add(record["images"], summary=self._summary(value=found))

    def picture(self, images: int, png: bytes) -> None:
        """Add a sample grid."""
        image = self._summary.Image(encoded_image_string=png, colorspace=RGB)
        shown = self._summary.Value(tag="samples", image=image)
        self._add(images, summary=self._summary(value=[shown]))

    def close(self) -> None:
        """Write what waits, if the storage takes it."""
        self._done.set()
        self._thread.join(FLUSH_S)

    def _add(self, images: int, **what: Any) -> None:
        event = self._event(wall_time=time.time(), step=images, **what)
        framed = self._framed(event)
        with self._lock:
            self._waiting.append(framed)
            self._bytes += len(framed)
            while self._bytes > WAITING_BYTES:
                self._bytes -= len(self._waiting.popleft())

    def _framed(self, event: Any) -> bytes:
        """One record of a TFRecord file: length, its checksum, the event, its checksum."""
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self._checksum(part)) for part in (length, data))
        return length + next(sums) + data + next(sums)

    def _work(self) -> None:
        every_s, last = FLUSH_S if self._run.store.appends else PUT_S, False
        while not last:
            last = self._done.wait(every_s)
            self._flush()

    def _flush(self) -> None:
        """Write what waits: to one file where the store appends, else as one file more."""
        with self._lock:
            data, self._waiting = b"".join(self._waiting), deque()
            self._bytes = 0
        if not data:
            return
        store = self._run.store
        key = self._run.key(FOLDER, f"{self._file}.{self._part:06d}")
        head = b"" if self._begun else self._framed(self._event(file_version="brain.Event:2"))
        try:
            (store.append if store.appends else store.write)(key, head + data)
        except StoreError as error:
            with self._lock:  # kept for the next time
                self._waiting.appendleft(data)
                self._bytes += len(data)
            self._leave_part(key)
            if not self._warned:
                self._warned = True
                self._warn(f"TensorBoard's files wait: {error}")
        else:
            self._begun = True
            if not store.appends:
                self._part, self._begun = self._part + 1, False

    def _leave_part(self, key: str) -> None:
        """Half of an event may lie at the end of the file: no reader would go on beyond it."""
        if self._begun:
            self._part, self._begun = self._part + 1, False
            return
        with contextlib.suppress(StoreError):
            self._run.store.delete(key)

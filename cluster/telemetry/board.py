"""TensorBoard's event files beside metrics.jsonl: scalars and sample grids, by images seen.

Written into the run's storage, so `tensorboard --logdir STORAGE/runs` reads a folder or s3://.
tensorboardX's RecordWriter makes the records. Its EventFileWriter was tried (2.6.5) and is not
used: a flush that fails ends its thread, and the 11th event after that blocks the training loop for
good; its S3 file sends all that was written again with each flush.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aalnet.errors import ConfigError
from cluster.runs.figures import floor_of, names
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
            from tensorboardX.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                "telemetry.tensorboard needs tensorboardX; pip install 'aalnet-cloud[train]', or "
                "set telemetry.tensorboard=false"
            ) from error
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = RecordWriter
        self._run, self._warn, self._warned = run, warn, False
        self._file = f"events.out.tfevents.{time.time_ns() // 10**6}"  # no other start's
        self._part, self._is_new = 0, True
        self._waiting: deque[Any] = deque()
        self._lock, self._done = threading.Lock(), threading.Event()
        # What was logged beyond `images` is void: a run that lost work logs it again.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(images, session_log=session)
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._thread.start()

    def add_record(self, record: Record) -> None:
        """Add the scalars of a record."""
        values: dict[str, float] = {}
        if record["kind"] == "train":
            values = {f"train/{name}": value for name, value in record["terms"].items()}
            values |= {f"speed/{name}": record[name] for name in
                       ("step_s", "data_s", "images_per_s")}  # fmt: skip
            values["train/lr"] = record["lr"]
        elif record["kind"] == "evaluation":
            for name in names(record):
                values[f"evaluation/{name}"] = record[name]
                if (floor := floor_of(record, name)) is not None:
                    values[f"condition/{name}"] = floor
        scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        if scalars:
            self._add(record["images"], summary=self._summary(value=scalars))

    def add_picture(self, images: int, png: bytes) -> None:
        """Add a sample grid."""
        image = self._summary.Image(encoded_image_string=png, colorspace=RGB)
        value = self._summary.Value(tag="samples", image=image)
        self._add(images, summary=self._summary(value=[value]))

    def close(self) -> None:
        """Write what waits, if the storage takes it."""
        self._done.set()
        self._thread.join(FLUSH_S)

    def _add(self, images: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=images, **content)
        with self._lock:
            self._waiting.append(event)

    def _work(self) -> None:
        every_s, last = FLUSH_S if self._run.store.appends else PUT_S, False
        while not last:
            last = self._done.wait(every_s)
            self._flush()

    def _flush(self) -> None:
        """Write what waits: to one file where the store appends, else as one file more."""
        with self._lock:
            events, self._waiting = self._waiting, deque()
        if not events:
            return
        store = self._run.store
        key = self._run.key(FOLDER, f"{self._file}.{self._part:06d}")
        try:
            (store.write if self._is_new else store.append)(key, self._encoded(events))
        except (StoreError, OSError) as error:  # OSError: of the machine's own disk
            self._keep(events)
            # Half of an event may end what was appended to: no reader goes on beyond it.
            self._part, self._is_new = self._part + (not self._is_new), True
            if not self._warned:
                self._warned = True
                self._warn(f"TensorBoard's files wait: {error}")
        else:
            self._is_new = not store.appends
            self._part += self._is_new

    def _encoded(self, events: deque[Any]) -> bytes:
        """Events as tensorboardX writes them; a new file begins with the format's version."""
        if self._is_new:
            events = deque([self._event(file_version="brain.Event:2"), *events])
        with tempfile.TemporaryDirectory(prefix="aalnet-events-") as folder:
            path = Path(folder, "events")
            writer = self._writer(str(path))
            with contextlib.closing(writer):
                for event in events:
                    writer.write(event.SerializeToString())
            return path.read_bytes()

    def _keep(self, events: deque[Any]) -> None:
        """Have events wait for the next time, the newest of them where they are too many."""
        with self._lock:
            self._waiting.extendleft(reversed(events))
            size = sum(event.ByteSize() for event in self._waiting)
            while size > WAITING_BYTES:
                size -= self._waiting.popleft().ByteSize()

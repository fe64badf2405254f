"""The log while a run trains: appended or in segments, through outages, torn lines, full disks."""

import json
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.runs import log as run_log
from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError

SOON_S = 20.0


class Watched(FolderStore):
    """A folder that tells what is written, and fails on request."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.done: queue.Queue[tuple[str, int]] = queue.Queue()
        self.failed: queue.Queue[str] = queue.Queue()
        self.down = False
        self.half = False

    def append(self, key: str, data: bytes) -> None:
        if self.half:
            self.half = False
            super().append(key, data[: len(data) // 2])
            self.failed.put(key)
            raise StoreError("no space left on device")
        self._check(key)
        super().append(key, data)
        self.done.put(("append", len(data)))

    def write(self, key: str, data: bytes) -> None:
        self._check(key)
        super().write(key, data)
        self.done.put(("write", len(data)))

    def create(self, key: str, data: bytes) -> None:
        self._check(key)
        super().create(key, data)
        self.done.put(("create", len(data)))

    def _check(self, key: str) -> None:
        if self.down:
            self.failed.put(key)
            raise StoreError("nobody answers")


class Bucket(Watched):
    """Appends to nothing, as an object store."""

    appends = False

    def append(self, key: str, data: bytes) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "AGAIN_S", 0.01)
    monkeypatch.setattr(run_log, "PUT_EVERY_S", 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture
def run(store: Watched) -> Run:
    return Run(store, "mine")


def line(images: int, **more: Any) -> Record:
    return {"kind": "train", "images": images, **more}


def images_of(run: Run) -> list[int]:
    return [record["images"] for record in run.records()]


def drain(waiting: "queue.Queue[Any]") -> list[Any]:
    return [waiting.get_nowait() for _ in range(waiting.qsize())]


# Putting


def test_a_line_is_there_at_once_in_a_folder(run: Run, store: Watched) -> None:
    log = RunLog(run, 0)
    for images in (8, 16):
        log.log(line(images))
        assert store.done.get(timeout=SOON_S)[0] == "append"
    assert images_of(run) == [8, 16]
    before_s = time.time()
    assert all(before_s - 60 < record["time_s"] <= before_s + 1 for record in run.records())
    log.close()
    assert store.done.empty(), "everything was there already"


def test_an_append_costs_its_own_bytes(run: Run, store: Watched) -> None:
    log = RunLog(run, 0)
    sizes = []
    for images in range(1, 6):
        log.log(line(images, text="x" * 1000))
        kind, size = store.done.get(timeout=SOON_S)
        assert kind == "append"
        sizes.append(size)
    log.close()
    assert max(sizes) < 1200
    assert images_of(run) == [1, 2, 3, 4, 5]


def test_an_object_store_gets_a_segment_now_and_then_and_the_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Bucket(tmp_path)
    run = Run(store, "mine")
    log = RunLog(run, 0)
    log.log(line(0))
    assert store.done.get(timeout=SOON_S)[0] == "create"
    monkeypatch.setattr(run_log, "PUT_EVERY_S", 3600.0)
    for images in range(1, 100):
        log.log(line(images))
    assert images_of(run) == [0], "the next put is not due"
    log.close()
    assert images_of(run) == list(range(100))
    assert [kind for kind, _ in drain(store.done)] == ["create", "write"]
    assert store.keys() == [run.key("metrics.jsonl")]


def test_flush_puts_everything_and_only_once(tmp_path: Path) -> None:
    for kind in (Watched, Bucket):
        store = kind(tmp_path / kind.__name__)
        run = Run(store, "mine")
        log = RunLog(run, 0)
        for images in range(50):
            log.log(line(images))
        log.flush()
        assert images_of(run) == list(range(50))
        drain(store.done)
        log.flush()
        assert store.done.empty()
        log.close()
        assert [kind for kind, _ in drain(store.done)] == ([] if store.appends else ["write"])


def test_many_threads_log_whole_lines(run: Run) -> None:
    log = RunLog(run, 0)

    def write(number: int) -> None:
        for images in range(50):
            log.log(line(images, thread=number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    text = run.store.read(run.key("metrics.jsonl")).decode()
    records = [json.loads(text_line) for text_line in text.splitlines()]
    assert len(records) == 200
    for number in range(4):
        assert [r["images"] for r in records if r["thread"] == number] == list(range(50))


# What had been logged before


def test_a_new_run_has_nothing_before(run: Run) -> None:
    log = RunLog(run, 0)
    assert (log.history, log.void) == ([], [])
    log.close()
    assert run.store.keys() == []


def test_what_lies_beyond_the_checkpoint_is_dropped(run: Run, store: Watched) -> None:
    for images in (24, 48, 72):
        run.log(line(images))
    before = store.read(run.key("metrics.jsonl"))
    whole = RunLog(run, 72)
    assert [record["images"] for record in whole.history] == [24, 48, 72]
    assert whole.void == []
    whole.close()
    assert store.read(run.key("metrics.jsonl")) == before

    cut = RunLog(run, 48)
    assert [record["images"] for record in cut.history] == [24, 48]
    assert [record["images"] for record in cut.void] == [72]
    cut.log({"kind": "start", "images": 48})
    cut.close()
    assert images_of(run) == [24, 48, 48]
    assert store.read(run.key("metrics.jsonl")).startswith(before[: before.rindex(b"{")])


def test_a_log_that_is_whole_is_appended_to(run: Run, store: Watched) -> None:
    run.log(line(24))
    drain(store.done)
    log = RunLog(run, 24)
    log.log(line(48))
    log.close()
    assert {kind for kind, _ in drain(store.done)} == {"append"}


@pytest.mark.parametrize(
    "torn",
    [
        b'{"kind": "train", "ima',
        b"\xff\xfe",
        b'7\n"x"\n{"kind": 1}\n\n',
        b"\n",
        b"[" * 5000,
        b'{"kind": "train", "images": "many"}\n',
        b'{"kind": "x", "images": 1, "time_s": []}\n',
    ],
    ids=lambda torn: ascii(torn[:20]),
)
def test_a_torn_line_does_not_swallow_the_next_record(
    run: Run, store: Watched, torn: bytes
) -> None:
    run.log(line(24))
    store.append(run.key("metrics.jsonl"), torn)
    log = RunLog(run, 24)
    assert [record["images"] for record in log.history] == [24]
    log.log({"kind": "start", "images": 24})
    log.close()
    assert [record["kind"] for record in run.records()] == ["train", "start"]
    for text in store.read(run.key("metrics.jsonl")).splitlines():
        assert json.loads(text)["images"] == 24


# Outages


@pytest.mark.parametrize("kind", [Watched, Bucket])
def test_an_outage_keeps_lines_and_order(tmp_path: Path, kind: type[Watched]) -> None:
    store = kind(tmp_path)
    run = Run(store, "mine")
    log = RunLog(run, 0)
    log.log(line(0))
    assert store.done.get(timeout=SOON_S)
    store.down = True
    for images in range(1, 40):
        log.log(line(images))
        if images == 10:
            store.failed.get(timeout=SOON_S)
            store.failed.get(timeout=SOON_S)
    assert images_of(run) == [0]
    with pytest.raises(StoreError, match="nobody answers"):
        log.flush()
    store.down = False
    drain(store.done)
    log.log(line(40))
    assert store.done.get(timeout=SOON_S)
    log.close()
    assert images_of(run) == list(range(41))


def test_a_half_written_line_after_a_full_disk_is_mended(run: Run, store: Watched) -> None:
    log = RunLog(run, 0)
    log.log(line(8))
    assert store.done.get(timeout=SOON_S)
    store.half = True
    log.log(line(16))
    store.failed.get(timeout=SOON_S)
    log.log(line(24))
    log.close()
    lines = store.read(run.key("metrics.jsonl")).splitlines()
    assert [json.loads(text)["images"] for text in lines] == [8, 16, 24]


def test_close_tells_that_the_storage_failed(run: Run, store: Watched) -> None:
    log = RunLog(run, 0)
    store.down = True
    log.log(line(8))
    with pytest.raises(StoreError, match="nobody answers"):
        log.close()
    store.down = False
    log.close()
    assert images_of(run) == [8]


def test_a_log_that_cannot_be_read_is_an_error(
    run: Run, store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise StoreError("no route to host")

    monkeypatch.setattr(store, "read", broken)
    with pytest.raises(StoreError, match="no route"):
        RunLog(run, 0)

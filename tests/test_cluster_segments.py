"""A log in segments: few of them, each number written once, nothing lost or doubled by a death."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage import segments
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.segments import LogTaken, SegmentedLog
from cluster.storage.store import StoreError
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server
from tests.support.segment_logs import Bucket, numbered
from tuner.journal import StoreJournal


@pytest.fixture
def joined_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "FAN_IN", 4)


def text_of(log: SegmentedLog) -> bytes:
    """What is new in a log."""
    return b"".join(text for _, text in log.read())


def fill(log: SegmentedLog, count: int) -> None:
    """Append so many lines one by one, each join done at once."""
    for _ in range(count):
        log.append(numbered(log.lines))
        log.settle()


@pytest.mark.usefixtures("joined_early")
def test_a_long_log_is_few_segments_and_a_reader_asks_for_what_is_new(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    writer, reader = SegmentedLog(store, "log"), SegmentedLog(store, "log")
    for count in (3, 14, 1, 40, 0):
        before = writer.lines
        fill(writer, count)
        assert text_of(reader) == numbered(*range(before, before + count))
    assert len(store.keys()) <= 58 / 16 + 4 + 4
    assert text_of(SegmentedLog(store, "log")) == numbered(*range(58))


@pytest.mark.usefixtures("joined_early")
def test_who_goes_on_joins_what_was_left(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for start in range(12):
        log = SegmentedLog(store, "log")
        assert text_of(log) == numbered(*range(2 * start))
        fill(log, 2)
    assert len(store.keys()) <= 1 + 4 + 4


@pytest.mark.usefixtures("joined_early")
def test_segments_stay_few_where_removing_takes_longer_than_appending(tmp_path: Path) -> None:
    class Slow(FolderStore):
        def delete(self, key: str) -> None:
            time.sleep(0.02)
            super().delete(key)

    log, most = SegmentedLog(Slow(tmp_path), "log"), 0
    for _ in range(60):
        log.append(numbered(log.lines))
        most = max(most, len(FolderStore(tmp_path).keys()))
    log.settle()
    assert most <= 6 * segments.FAN_IN


@pytest.mark.usefixtures("joined_early")
def test_a_removal_that_fails_does_not_end_the_joining(tmp_path: Path) -> None:
    class Once(FolderStore):
        fails = True

        def delete(self, key: str) -> None:
            if self.fails and key.endswith("001.jsonl"):
                self.fails = False
                raise StoreError("no route to host")
            super().delete(key)

    log = SegmentedLog(Once(tmp_path), "log")
    fill(log, 40)
    assert text_of(SegmentedLog(FolderStore(tmp_path), "log")) == numbered(*range(40))
    assert max(segment.level for segment in log._segments()) == segments.LEVELS


def test_a_gap_ends_what_is_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    fill(SegmentedLog(store, "log"), 3)
    store.delete("log/000000000001.jsonl")
    reader = SegmentedLog(store, "log")
    assert (text_of(reader), reader.complete) == (b"0\n", False)
    store.create("log/000000000001.jsonl", b"1\n")
    assert (text_of(reader), reader.complete) == (b"1\n2\n", True)


def test_a_log_that_cannot_be_listed_or_read_is_an_error(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    fill(SegmentedLog(store, "log"), 3)

    class Failing(FolderStore):
        def read(self, key: str, limit_bytes: int | None = None) -> bytes:
            if key.endswith("2.jsonl"):
                raise StoreError("no route to host")
            return super().read(key, limit_bytes)

    reader = SegmentedLog(Failing(tmp_path), "log")
    for _ in range(2):
        with pytest.raises(StoreError, match="no route"):
            reader.read()
    reader._store = store
    assert text_of(reader) == numbered(0, 1, 2)


@pytest.mark.usefixtures("joined_early")
def test_a_writer_that_dies_at_any_request_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for writes in range(70):
        store = Bucket(tmp_path / str(writes))
        store.writes = writes
        log = SegmentedLog(store, "log")
        with pytest.raises(StoreError, match="killed"):
            fill(log, 60)
        again = SegmentedLog(FolderStore(store.root), "log")
        assert text_of(again) == numbered(*range(log.lines))
        fill(again, 9)
        reader = SegmentedLog(FolderStore(store.root), "log")
        assert text_of(reader) == numbered(*range(log.lines + 9))
        assert reader.complete


# A real server


def test_a_journals_append_is_one_request_and_a_look_is_one(
    proxy: FaultProxy, server: S3Server
) -> None:
    store = open_store(f"s3://{server.bucket}/journal-cost")
    journal, reader = (StoreJournal(store, "study", writes=writes) for writes in (True, False))
    proxy.forget()
    for number in range(20):
        journal.append_logs([{"n": number}])
    journal.read_logs(0)
    assert proxy.requests == {"create": 20}
    proxy.forget()
    assert len(reader.read_logs(0)) == 20
    reader.read_logs(20)
    assert proxy.requests == {"list": 2, "get": 20}


def test_of_two_writers_one_wins_each_number(server: S3Server) -> None:
    uri = f"s3://{server.bucket}/two"
    gate = threading.Barrier(2)

    def write(name: int) -> list[bytes]:
        done = []
        for number in range(10):
            log = SegmentedLog(open_store(uri), "log")
            log.read()
            gate.wait(30)
            line = b"%d %d\n" % (name, number)
            try:
                log.append(line)
                done.append(line)
            except LogTaken:
                pass
            gate.wait(30)
        return done

    with ThreadPoolExecutor(2) as pool:
        won = [line for lines in pool.map(write, range(2)) for line in lines]
    text = text_of(SegmentedLog(open_store(uri), "log"))
    assert len(won) == 10
    assert sorted(text.splitlines(keepends=True)) == sorted(won)

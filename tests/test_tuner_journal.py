"""The study's journal in a storage: whole or not at all, one writer, and readers that keep up."""

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage

from aalnet.errors import CheckpointError
from cluster.storage import segments
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.segments import LogTaken
from cluster.storage.store import StoreError
from tests.support.s3_server import S3Server
from tuner.journal import StoreJournal

optuna.logging.set_verbosity(optuna.logging.ERROR)


class FlakyStore(FolderStore):
    """A folder that fails as it is told: before a blob is put, or after."""

    fails = ""

    def create(self, key: str, data: bytes) -> None:
        if self.fails == "before":
            raise StoreError("the server is away")
        super().create(key, data)
        if self.fails == "after":
            raise StoreError("the answer was lost")


def lines(*numbers: int) -> list[dict[str, Any]]:
    return [{"n": number} for number in numbers]


def written(store: FolderStore, count: int) -> StoreJournal:
    """A journal of `count` blobs of one line each."""
    made = StoreJournal(store, "study", writes=True)
    for number in range(count):
        made.append_logs(lines(number))
    return made


def test_lines_come_back_in_their_order(tmp_path: Path) -> None:
    written(FolderStore(tmp_path), 5)
    again = StoreJournal(FolderStore(tmp_path), "study", writes=True)
    assert again.read_logs(0) == lines(0, 1, 2, 3, 4)
    assert again.read_logs(3) == lines(3, 4)
    again.append_logs(lines(5, 6))
    assert StoreJournal(FolderStore(tmp_path), "study", writes=False).read_logs(4) == lines(4, 5, 6)


def test_what_is_told_together_is_one_blob(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    made = written(store, 0)
    with made.together():
        made.append_logs(lines(0))
        with made.together():
            made.append_logs(lines(1))
        assert store.keys("study/") == []
    assert len(store.keys("study/")) == 1


def test_a_reader_sees_what_is_new(tmp_path: Path) -> None:
    made = written(FolderStore(tmp_path), 2)
    reader = StoreJournal(FolderStore(tmp_path), "study", writes=False)
    assert reader.read_logs(0) == lines(0, 1)
    made.append_logs(lines(2))
    assert reader.read_logs(2) == lines(2)


def test_a_journal_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """It joined lines as `until-<end>`, and may have died before it removed what that holds."""
    store = FolderStore(tmp_path)
    written(store, 4)
    store.create("study/until-000000000003.jsonl", b'{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    for gone in ([], [0, 1], [2]):
        for number in gone:
            store.delete(f"study/{number:012d}.jsonl")
        for writes in (False, True):
            found = StoreJournal(store, "study", writes=writes)
            assert found.read_logs(0) == lines(0, 1, 2, 3)
    found.append_logs(lines(4))
    assert StoreJournal(store, "study", writes=True).read_logs(0) == lines(0, 1, 2, 3, 4)


def test_of_two_writers_the_second_is_told(tmp_path: Path) -> None:
    one = written(FolderStore(tmp_path), 1)
    other = StoreJournal(FolderStore(tmp_path), "study", writes=True)
    other.append_logs(lines(1))
    with pytest.raises(LogTaken, match="another process has written"):
        one.append_logs(lines(7))
    assert StoreJournal(FolderStore(tmp_path), "study", writes=False).read_logs(0) == lines(0, 1)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_outage_loses_nothing_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    store = FlakyStore(tmp_path)
    made = written(store, 1)
    store.fails = moment
    for number in (1, 2):
        with pytest.raises(StoreError):
            made.append_logs(lines(number))
    store.fails = ""
    made.append_logs(lines(3))
    assert StoreJournal(store, "study", writes=True).read_logs(0) == lines(0, 1, 2, 3)


def test_a_missing_or_damaged_blob_is_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    written(store, 3)
    kept = store.read("study/000000000001.jsonl")
    store.delete("study/000000000001.jsonl")
    with pytest.raises(CheckpointError, match="misses lines of the study's journal from 1 on"):
        StoreJournal(store, "study", writes=True)
    store.write("study/000000000001.jsonl", kept[:5])
    with pytest.raises(CheckpointError, match=r"000000000001.jsonl is damaged"):
        StoreJournal(store, "study", writes=True)


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    written(FolderStore(tmp_path), 1)
    reader = StoreJournal(FolderStore(tmp_path), "study", writes=False)
    with pytest.raises(CheckpointError, match="reading only"):
        reader.append_logs(lines(1))


def test_a_study_in_s3_with_readers_beside(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FAN_IN", 4)  # so that it is joined under way
    uri = f"s3://{server.bucket}/journal"
    writer = JournalStorage(StoreJournal(open_store(uri), "study", writes=True))
    study = optuna.create_study(study_name="x", storage=writer)
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        storage = JournalStorage(StoreJournal(open_store(uri), "study", writes=False))
        seen = 0
        while not done.is_set():
            now = len(optuna.load_study(study_name="x", storage=storage).get_trials())
            if now < seen:
                wrong.append(f"{seen} trials became {now}")
            seen = now

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=30)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    again = JournalStorage(StoreJournal(open_store(uri), "study", writes=True))
    trials = optuna.load_study(study_name="x", storage=again).get_trials()
    assert [trial.params for trial in trials] == [trial.params for trial in study.get_trials()]

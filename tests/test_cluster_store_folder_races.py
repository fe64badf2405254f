"""The folder store under several hands: old or new bytes, one creator of a name, whole lists."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.folder import FolderStore
from cluster.storage.store import BlobExists


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


# Writers that die or fail


WRITER = """
import sys
from cluster.storage.folder import FolderStore
store = FolderStore(sys.argv[1])
blobs = [bytes([value]) * 3_000_000 for value in range(8)]
print("ready", flush=True)
while True:
    for blob in blobs:
        store.write("blob", blob)
"""


def test_a_killed_writer_leaves_old_or_new(store: FolderStore, repo_root: Path) -> None:
    store.write("blob", bytes(3_000_000))
    for delay_s in (0.0, 0.011, 0.023, 0.037, 0.05):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.uri],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(repo_root)},
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay_s)
            writer.send_signal(signal.SIGKILL)
        blob = store.read("blob")
        assert len(blob) == 3_000_000
        assert len(set(blob)) == 1
        assert store.keys() == ["blob"]  # what was half written is not listed


def test_a_write_that_fails_leaves_the_old(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("blob", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left") as caught:
        store.write("blob", b"new")
    assert caught.value.exit_code == 1  # type: ignore[attr-defined]
    assert store.read("blob") == b"old"
    assert [path.name for path in store.root.iterdir()] == ["blob"]


# Creators


def test_of_two_that_create_one_wins(store: FolderStore) -> None:
    store.create("a/b", b"first")
    with pytest.raises(BlobExists, match="`a/b` exists"):
        store.create("a/b", b"other")
    store.create("a/b", b"first")  # a lost reply: the same bytes count as ours
    assert store.read("a/b") == b"first"
    assert [path.name for path in (store.root / "a").iterdir()] == ["b"]
    store.delete("a/b")
    store.create("a/b", b"other")
    assert store.read("a/b") == b"other"


def test_many_that_create_at_once(store: FolderStore) -> None:
    """Each round has one winner, whose bytes stay; the others learn of it."""

    def create(number: int, key: str) -> bool:
        started.wait(10)
        try:
            store.create(key, bytes([number]) * 1000)
        except BlobExists:
            return False
        return True

    for round_ in range(20):
        key, started = f"round/{round_}", threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(create, range(4), [key] * 4))
        assert won.count(True) == 1
        assert store.read(key) == bytes([won.index(True)]) * 1000


def test_a_name_that_becomes_free_while_it_is_created(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival's blob is there when ours is to be linked, and gone when it is compared."""
    store.write("blob", b"a rival's")
    read = Path.read_bytes

    def gone(path: Path) -> bytes:
        path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    store.create("blob", b"ours")
    monkeypatch.undo()
    assert store.read("blob") == b"ours"


# Lists


def test_a_listing_has_a_blob_or_the_one_in_its_place(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("lease/1", b"")
    scandir = os.scandir

    def replaced(folder: str) -> Any:
        listed = scandir(folder)
        if folder.endswith("lease"):
            with listed:
                entries = list(listed)
            store.write("lease/2", b"")
            store.delete("lease/1")
            return contextlib.nullcontext(entries)
        return listed

    monkeypatch.setattr(os, "scandir", replaced)
    assert store.keys("lease/") in (["lease/1"], ["lease/2"])


def test_a_folder_may_vanish_while_it_is_listed(store: FolderStore) -> None:
    """Readers list a run while the run itself removes its old checkpoints."""
    stop = threading.Event()

    def churn() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            store.write(f"a/{number}/b/c", b"")
            store.delete(f"a/{number}/b/c")

    store.write("a/kept", b"")
    with ThreadPoolExecutor(1) as pool:
        churning = pool.submit(churn)
        try:
            for _ in range(2000):
                assert "a/kept" in store.keys("a/")
                assert store.sweep("a/", 3600) == []
        finally:
            stop.set()
        churning.result()

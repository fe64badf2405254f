"""The store's contract, on a folder and on a real S3 server alike."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aalnet.errors import ConfigError
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import BlobExists, BlobMissing, Store, StoreError
from tests.support.repeats import repeats


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "storage")
    server = request.getfixturevalue("server")
    return open_store(f"s3://{server.bucket}/{prefix}")


def test_write_read_list_delete(store: Store) -> None:
    store.write("a/b/one", b"1")
    store.write("a/b/one", b"12")
    if store.appends:
        store.append("a/two", b"3")
        store.append("a/two", b"4")
    else:
        with pytest.raises(StoreError, match="cannot append"):
            store.append("a/two", b"3")
        store.write("a/two", b"34")
    assert store.read("a/b/one") == b"12"
    assert store.read("a/two") == b"34"
    assert store.size("a/two") == 2
    assert store.keys() == ["a/b/one", "a/two"]
    assert store.keys("a/b/") == ["a/b/one"]
    assert store.keys("a/t") == ["a/two"]
    assert store.folders("a/") == ["b"]
    assert store.folders() == ["a"]
    store.delete("a/b/one")
    if isinstance(store, FolderStore):  # SeaweedFS has real folders, and removes empty ones later
        assert store.folders("a/") == []
    assert store.keys() == ["a/two"]


def test_entries_tell_size_and_age(store: Store) -> None:
    store.write("x", b"123")
    (entry,) = store.entries()
    assert (entry.key, entry.bytes) == ("x", 3)
    assert abs(entry.modified_s - time.time()) < 10


def test_an_empty_blob(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.size("empty") == 0
    assert store.read_range("empty", 0, 5) == b""


def test_ranges(store: Store) -> None:
    store.write("x", b"0123456789")
    assert store.read_range("x", 2, 3) == b"234"
    assert store.read_range("x", 8, 100) == b"89"
    assert store.read_range("x", 10, 5) == b""
    assert store.read_range("x", 99, 5) == b""
    assert store.read_range("x", 3, 0) == b""


@pytest.mark.parametrize("key", ["nothing", "no/folder/nothing", "file/below"])
def test_what_is_missing(store: Store, key: str) -> None:
    store.write("file", b"")
    for ask in (store.read, store.size, lambda k: store.read_range(k, 0, 1)):
        with pytest.raises(BlobMissing, match=key):
            ask(key)
    store.delete(key)
    assert store.keys(f"{key}/") == []
    assert store.folders(f"{key}/") == []
    assert store.read("file") == b""


def test_a_blob_over_its_limit_is_refused(store: Store) -> None:
    store.write("x", bytes(1000))
    assert len(store.read("x", 1000)) == 1000
    with pytest.raises(StoreError, match="larger than the 999 bytes"):
        store.read("x", 999)


@pytest.mark.parametrize("key", ["..", "../outside", "a/../../outside", "a/.."])
def test_no_way_out(store: Store, key: str) -> None:
    for ask in (store.read, store.delete, store.folders, lambda k: store.write(k, b"")):
        with pytest.raises(ConfigError, match="leads out of the storage"):
            ask(key)


def test_of_two_creators_one_wins(store: Store) -> None:
    store.create("x", b"first")
    with pytest.raises(BlobExists, match="`x` exists"):
        store.create("x", b"other")
    store.create("x", b"first")  # ours already: a reply may have been lost
    assert store.read("x") == b"first"


def race(store: Store, rival: Store, key: str) -> list[str]:
    """Two writers create one key at one time; who won."""
    start = threading.Barrier(2)

    def create(mine: Store, name: str) -> str | None:
        start.wait()
        try:
            mine.create(key, f"of {name} {'x' * 200}".encode())
        except BlobExists:
            return None
        return name

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(create, store, "one"), pool.submit(create, rival, "two")]
        winners = [name for future in done if (name := future.result())]
    assert [store.read(key)[3:6].decode()] == winners
    return winners


def test_races_have_one_winner_each(store: Store) -> None:
    rival = open_store(store.uri)
    won = [race(store, rival, f"races/{number}") for number in range(repeats(200, 1000))]
    assert {len(winners) for winners in won} == {1}
    assert len({winner for (winner,) in won}) == 2, "one writer always came first: no race"


def test_keys_with_odd_characters(store: Store) -> None:
    names = ["a b.png", "é/ü", "plus+and&", "100%", "q?x=1", "hash#1", "tilde~"]
    for name in names:
        store.write(name, name.encode())
    assert store.keys() == sorted(names)
    assert [store.read(name).decode() for name in names] == names

"""The folder store: where it may write, what it lists, what it refuses, what it sweeps."""

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from aalnet.errors import ConfigError
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing, BlobTooLarge, StoreError, StoreUnavailable


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


# Keys and places


def test_write_read_append_list_delete(store: FolderStore) -> None:
    store.write("a/b/one", b"1")
    store.append("a/b/one", b"2")
    store.append("a/two", b"3")
    assert store.read("a/b/one") == b"12"
    assert store.keys() == ["a/b/one", "a/two"]
    assert store.keys("a/b/") == ["a/b/one"]
    assert store.keys("a/t") == ["a/two"]
    assert store.folders("a/") == ["b"]
    store.delete("a/b/one")
    assert store.folders("a/") == []
    assert store.keys() == ["a/two"]


def test_a_folder_is_not_a_blob(store: FolderStore) -> None:
    store.write("a/b", b"")
    with pytest.raises(BlobMissing):
        store.read("a")


@pytest.mark.parametrize("key", ["..", "../outside", "a/../../outside", "a/.."])
@pytest.mark.parametrize(
    "action",
    ["read", "size", "read_range", "write", "create", "append", "delete", "folders", "sweep"],
)
def test_no_way_out(store: FolderStore, key: str, action: str) -> None:
    more = {"write": [b""], "create": [b""], "append": [b""], "read_range": [0, 1], "sweep": [0.0]}
    rest: list[object] = [*more.get(action, [])]
    with pytest.raises(ConfigError, match="leads out of the storage"):
        getattr(store, action)(key, *rest)


def test_absolute_keys_stay_inside(store: FolderStore) -> None:
    store.write("/etc/aalnet-test", b"inside")
    assert (store.root / "etc" / "aalnet-test").read_bytes() == b"inside"


def unusable(tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_bytes(b"")
    paths = [tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)]
    return [*map(str, paths), *(["/proc/nope"] if Path("/proc/self").exists() else [])]


def test_an_unusable_place_is_the_users_to_mend(tmp_path: Path) -> None:
    for uri in unusable(tmp_path):
        for action in ("write", "create", "append"):
            with pytest.raises(StoreUnavailable, match="choose another with --storage") as caught:
                getattr(open_store(uri), action)("runs/a", b"")
            assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnavailable):
        FolderStore(tmp_path).write("a", b"")


def test_folders_and_buckets_and_nothing_else(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)
    assert open_store("s3://bucket/some/prefix/").uri == "s3://bucket/some/prefix"
    assert open_store("s3://bucket").uri == "s3://bucket"
    for uri in ("ftp://host/runs", "gs://bucket/prefix", "http://host"):
        with pytest.raises(
            ConfigError, match=rf"{uri.partition(':')[0]}:// is not supported; .*s3:"
        ):
            open_store(uri)
    for uri in ("s3://", "s3:///prefix", "s3://bucket/prefix?endpoint=http://x"):
        with pytest.raises(ConfigError, match="must be s3://bucket/prefix"):
            open_store(uri)
    with pytest.raises(ConfigError, match="leads out of the storage"):
        open_store("s3://bucket/../other")


# Limits, links and leftovers


def test_links_that_lead_nowhere_are_no_blobs(store: FolderStore, tmp_path: Path) -> None:
    store.write("kept", b"1")
    (store.root / "loop").symlink_to("loop")
    (store.root / "broken").symlink_to("nothing")
    os.mkfifo(store.root / "pipe")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/blob").write_bytes(b"1")
    (store.root / "elsewhere").symlink_to(tmp_path / "outside")
    (store.root / "file").symlink_to(store.root / "kept")
    assert store.keys() == [entry.key for entry in store.entries()] == ["file", "kept"]


def test_a_name_that_a_broken_link_keeps_is_told(store: FolderStore) -> None:
    store.write("kept", b"1")
    (store.root / "blob").symlink_to("nothing")
    with pytest.raises(StoreError, match="No such file or directory: `blob`"):
        store.create("blob", b"ours")


def test_a_limit_is_never_allocated_nor_passed(store: FolderStore) -> None:
    store.write("blob", b"12345")
    tracemalloc.start()
    assert store.read("blob", 2**62) == store.read("blob", 5) == store.read("blob") == b"12345"
    for limit in (0, 4):
        with pytest.raises(BlobTooLarge, match=f"`blob` is larger than the {limit} bytes"):
            store.read("blob", limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_sweep_removes_what_a_dead_writer_left(store: FolderStore) -> None:
    store.write("runs/a/blob", b"whole")
    old, young = (store.root / "runs" / "a" / f".blob.{n}.partial" for n in (1, 2))
    for path in (old, young, store.root / "elsewhere.partial"):
        path.write_bytes(b"half")
    hours_ago_s = time.time() - 7200
    os.utime(old, (hours_ago_s, hours_ago_s))
    assert store.keys("runs/") == ["runs/a/blob"]
    assert store.sweep("runs/a/", 3600) == ["runs/a/.blob.1.partial"]
    assert (old.exists(), young.exists()) == (False, True)
    assert store.sweep("runs/a/", 0) == ["runs/a/.blob.2.partial"]
    assert store.sweep("nothing/", 0) == []
    assert store.read("runs/a/blob") == b"whole"
    assert (store.root / "elsewhere.partial").exists()

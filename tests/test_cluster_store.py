"""The folder store and runs in it: atomic writes, refusals, logs that were torn."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import Settings, parse_settings
from cluster.runs.run import Run, find_run, list_runs
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import (
    BlobExists,
    BlobMissing,
    BlobTooLarge,
    StoreError,
    StoreUnavailable,
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def run(store: FolderStore) -> Run:
    return Run(store, "mine")


# Blobs


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


@pytest.mark.parametrize("key", ["nothing", "no/folder/nothing", "file/below"])
def test_what_is_missing(store: FolderStore, key: str) -> None:
    store.write("file", b"")
    with pytest.raises(BlobMissing, match=key):
        store.read(key)
    store.delete(key)
    assert store.folders(f"{key}/") == []
    assert store.keys(f"{key}/") == []
    assert store.read("file") == b""


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


# Created once, read in parts, listed, swept


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


def test_a_name_that_a_broken_link_keeps_is_told(store: FolderStore) -> None:
    store.write("kept", b"1")
    (store.root / "blob").symlink_to("nothing")
    with pytest.raises(StoreError, match="No such file or directory: `blob`"):
        store.create("blob", b"ours")


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


def test_ranges_and_sizes(store: FolderStore) -> None:
    store.write("blob", b"0123456789")
    assert store.size("blob") == 10
    assert store.read_range("blob", 2, 3) == b"234"
    assert store.read_range("blob", 8, 10) == b"89"
    assert store.read_range("blob", 50, 3) == b""
    assert store.read_range("blob", 2, 0) == b""
    for call in (lambda: store.size("x"), lambda: store.read_range("x", 0, 1)):
        with pytest.raises(BlobMissing, match="`x`"):
            call()


def test_entries_say_size_and_age(store: FolderStore) -> None:
    before_s = time.time()
    store.write("a/b", b"123")
    (entry,) = store.entries()
    assert (entry.key, entry.bytes) == ("a/b", 3)
    assert before_s - 2 < entry.modified_s < time.time() + 2


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


# Runs


HOSTILE = [
    "", ".", "..", ".hidden", "-rf", "a/b", "../a", "a b", "a\n", "a\x00", "a\x1b[2J", "\u017f",
    "\u212a", "x" * 64, "<script>", "run;ls", "é",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(store: FolderStore, name: str) -> None:
    with pytest.raises(ConfigError, match="choose one with --run"):
        Run(store, name)


def test_a_foreign_folder_is_not_a_run(store: FolderStore, run: Run) -> None:
    store.write("runs/not a run/run.yaml", b"")
    run.write_settings(Settings())
    assert list_runs(store) == [run]


def test_claim_and_resume(run: Run) -> None:
    assert run.settings() is None
    run.claim(Settings())
    run.claim(parse_settings({"run": {"keep_last": 5, "workers": 0}}))
    settings = run.settings()
    assert settings is not None
    assert settings.run.keep_last == 5


def test_claim_with_other_settings_names_the_key(run: Run) -> None:
    run.claim(Settings())
    with pytest.raises(CheckpointError, match=r"started with objective\.eta 0\.3, now it is 0\.5"):
        run.claim(parse_settings({"objective": {"eta": 0.5}}))
    assert run.settings() == Settings()


def test_find_run_suggests_the_nearest(store: FolderStore, run: Run) -> None:
    run.write_settings(Settings())
    assert find_run(store, "mine") == (run, Settings())
    with pytest.raises(CheckpointError, match="did you mean `mine`"):
        find_run(store, "mime")
    with pytest.raises(CheckpointError, match="see `aalnet runs list`"):
        find_run(store, "zzz")


@pytest.mark.parametrize("text", [b"\xff\xfe", b"model: [", b"model: other", b"- 1"], ids=ascii)
def test_a_damaged_run_yaml_is_a_clear_error(run: Run, text: bytes) -> None:
    run.store.write(run.key("run.yaml"), text)
    with pytest.raises(ConfigError):
        run.settings()


def test_records_leave_out_what_is_torn_or_foreign(run: Run) -> None:
    run.log({"kind": "train", "images": 24})
    run.store.append(
        run.key("metrics.jsonl"), b'7\n"x"\n{"kind": 1}\n\xff\n\n{"kind": "train", "ima'
    )
    assert [record["images"] for record in run.records()] == [24]


@pytest.mark.parametrize(
    ("last", "age_s", "expected"),
    [
        ({"kind": "end", "status": "finished"}, 0, "finished"),
        ({"kind": "end", "status": "failed"}, 9999, "failed"),
        ({"kind": "train"}, 0, "running"),
        ({"kind": "train"}, 9999, "stopped"),
    ],
)
def test_status(run: Run, last: dict[str, str], age_s: float, expected: str) -> None:
    assert run.status() == "stopped"
    record = {**last, "images": 1, "time_s": time.time() - age_s}
    run.store.append(run.key("metrics.jsonl"), json.dumps(record).encode() + b"\n")
    assert run.status() == expected


def test_samples_are_in_order_of_images(run: Run) -> None:
    for name in ("800.png", "1600.png", "notes.txt", "last.png"):
        run.store.write(run.key("samples", name), b"")
    assert list(run.samples()) == [800, 1600]

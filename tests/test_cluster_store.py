"""The folder store and runs in it: atomic writes, refusals, logs that were torn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import Settings, parse_settings
from cluster.runs import Run, find_run, list_runs
from cluster.store import BlobMissing, FolderStore, StoreUnavailable, open_store


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
@pytest.mark.parametrize("action", ["read", "write", "append", "delete", "folders"])
def test_no_way_out(store: FolderStore, key: str, action: str) -> None:
    rest = [b""] if action in {"write", "append"} else []
    with pytest.raises(ConfigError, match="leads out of the storage"):
        getattr(store, action)(key, *rest)


def test_absolute_keys_stay_inside(store: FolderStore) -> None:
    store.write("/etc/aalnet-test", b"inside")
    assert (store.root / "etc" / "aalnet-test").read_bytes() == b"inside"


WRITER = """
import sys
from cluster.store import FolderStore
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
        for action in ("write", "append"):
            with pytest.raises(StoreUnavailable, match="choose another with --storage") as caught:
                getattr(open_store(uri), action)("runs/a", b"")
            assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnavailable):
        FolderStore(tmp_path).write("a", b"")


def test_only_folders_so_far(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)
    with pytest.raises(ConfigError, match=r"s3:// is not supported"):
        open_store("s3://bucket/prefix")


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


def test_a_torn_line_does_not_swallow_the_next_record(run: Run) -> None:
    run.log({"kind": "train", "images": 24})
    run.store.append(run.key("metrics.jsonl"), b'{"kind": "train", "ima')
    run.forget_after(24)
    run.log({"kind": "start", "images": 24})
    assert [record["kind"] for record in run.records()] == ["train", "start"]


def test_forget_after(run: Run) -> None:
    run.forget_after(0)
    assert run.store.keys() == []
    for images in (24, 48, 72):
        run.log({"kind": "train", "images": images})
    before = run.store.read(run.key("metrics.jsonl"))
    run.forget_after(72)
    assert run.store.read(run.key("metrics.jsonl")) == before
    run.forget_after(48)
    assert [record["images"] for record in run.records()] == [24, 48]


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

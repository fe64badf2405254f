"""Runs in a store: their names, their settings, records that were torn, status."""

import json
import time
from pathlib import Path

import pytest

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import Settings, parse_settings
from cluster.runs.run import Run, find_run, list_runs
from cluster.storage.folder import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def run(store: FolderStore) -> Run:
    return Run(store, "mine")


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


def test_find_run_suggests_the_nearest(store: FolderStore, run: Run) -> None:
    run.write_settings(Settings())
    assert find_run(store, "mine") == (run, Settings())
    with pytest.raises(CheckpointError, match="did you mean `mine`"):
        find_run(store, "mime")
    with pytest.raises(CheckpointError, match="see `aalnet runs list`"):
        find_run(store, "zzz")


def test_claim_and_resume(run: Run) -> None:
    assert run.settings() is None
    run.claim(Settings())
    run.claim(parse_settings({"run": {"keep_last": 5, "workers": 0}}))
    settings = run.settings()
    assert settings is not None
    assert settings.run.keep_last == 5


def test_claim_with_other_settings_names_the_key(run: Run) -> None:
    run.claim(Settings())
    with pytest.raises(CheckpointError, match=r"started with objective\.eta 0\.5, now it is 0\.4"):
        run.claim(parse_settings({"objective": {"eta": 0.4}}))
    assert run.settings() == Settings()


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

"""TensorBoard's event files, read back record by record with their checksums."""

import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from aalnet.errors import ConfigError
from aalnet.settings import Settings, TelemetrySettings
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from cluster.telemetry import board
from cluster.telemetry.board import FOLDER, Board
from cluster.training.stop import Stop
from tests.support.tiny_runs import tiny_settings, write_data


class Bucket(FolderStore):
    """A store that cannot append, as S3."""

    appends = False

    def append(self, key: str, data: bytes) -> None:
        raise AssertionError("an object store cannot append")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


def events_of(data: bytes) -> list[Any]:
    """The events of one file."""
    found, at = [], 0
    while at < len(data):
        head = data[at : at + 8]
        (length,) = struct.unpack("<Q", head)
        body = data[at + 12 : at + 12 + length]
        sums = (
            struct.unpack("<I", data[at + 8 : at + 12]),
            struct.unpack("<I", data[at + 12 + length : at + 16 + length]),
        )
        assert sums == ((masked_crc32c(head),), (masked_crc32c(body),))
        found.append(event_pb2.Event.FromString(body))
        at += 16 + length
    return found


def files_of(run: Run) -> list[list[Any]]:
    """The events of a run's files, file by file in their order."""
    keys = sorted(run.store.keys(run.key(FOLDER) + "/"))
    return [events_of(run.store.read(key)) for key in keys]


def scalars(events: list[Any]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def trained(store: FolderStore, settings: Settings) -> Run:
    run = Run(store, "a")
    run.claim(settings)
    assert launcher.train_here(run, settings, Placement(0, "cpu", "here"), Stop()) == "finished"
    return run


@pytest.mark.parametrize("kind", [FolderStore, Bucket])
def test_a_run_writes_scalars_and_grids(tmp_path: Path, kind: type[FolderStore]) -> None:
    settings = tiny_settings(write_data(tmp_path / "data")).model_copy(
        update={"telemetry": TelemetrySettings(port=0, tensorboard=True)}
    )
    run = trained(kind(tmp_path / "store"), settings)
    files = files_of(run)
    assert all(events[0].file_version == "brain.Event:2" for events in files)
    events = [event for part in files for event in part]
    found = scalars(events)
    logged = [record for record in run.records() if record["kind"] == "train"]
    assert [step for step, _ in found["train/entropy"]] == [r["images"] for r in logged]
    assert [value for _, value in found["train/entropy"]] == pytest.approx(
        [record["terms"]["entropy"] for record in logged]
    )
    assert {"train/lr", "speed/step_s", "evaluation/diversity", "condition/l1"} <= found.keys()
    grids = {event.step: value.image.encoded_image_string for event in events
             for value in event.summary.value if value.tag == "samples"}  # fmt: skip
    assert grids == {images: run.store.read(key) for images, key in run.samples().items()}


def test_a_start_voids_what_was_beyond_it(tmp_path: Path) -> None:
    run = Run(FolderStore(tmp_path), "a")
    for images in (0, 16):
        found = Board(run, images, pytest.fail)
        found.add_record({"kind": "evaluation", "images": images + 8, "diversity": 0.5})
        found.close()
    starts = [event.step for events in files_of(run) for event in events
              if event.session_log.status == event_pb2.SessionLog.START]  # fmt: skip
    assert starts == [0, 16]


def test_an_outage_keeps_events_and_the_oldest_go_in_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FolderStore):
        fails = True

        def write(self, key: str, data: bytes) -> None:
            if self.fails:
                raise StoreError("down")
            super().write(key, data)

    monkeypatch.setattr(board, "FLUSH_S", 0.01)
    monkeypatch.setattr(board, "WAITING_BYTES", 4000)
    store = Failing(tmp_path)
    run = Run(store, "a")
    warned: list[str] = []
    found = Board(run, 0, warned.append)
    for images in range(200):
        found.add_record({"kind": "evaluation", "images": images, "diversity": 0.5})
    while not 0 < len(found._waiting) < 200:  # until the oldest have gone
        time.sleep(0.01)
    store.fails = False
    found.close()
    found._thread.join()
    ((_, *events),) = files_of(run)
    steps = [step for step, _ in scalars(events)["evaluation/diversity"]]
    assert steps == list(range(steps[0], 200))
    assert 0 < len(steps) < 200
    assert warned == ["TensorBoard's files wait: down"]


def test_half_an_event_ends_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full now and then: what was cut is written again, in a file of its own."""

    class Cutting(FolderStore):
        left = 1

        def append(self, key: str, data: bytes) -> None:
            self.left -= 1
            if self.left == 0:
                super().append(key, data[: len(data) // 2])
                raise StoreError("No space left on device")
            super().append(key, data)

    monkeypatch.setattr(board, "FLUSH_S", 3600.0)
    warned: list[str] = []
    run = Run(Cutting(tmp_path), "a")
    found = Board(run, 0, warned.append)
    for images in (8, 16, 24):
        found.add_record({"kind": "evaluation", "images": images, "diversity": 0.5})
        found._flush()
    found.close()
    cut, whole = (run.store.read(key) for key in run.store.keys(run.key(FOLDER) + "/"))
    with pytest.raises(struct.error):
        events_of(cut)
    seen = scalars(events_of(whole))["evaluation/diversity"]
    assert [step for step, _ in seen] == [16, 24]
    assert len(warned) == 1


def test_without_tensorboardx_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    with pytest.raises(ConfigError, match=r"pip install 'aalnet-cloud\[train\]'"):
        Board(Run(FolderStore(tmp_path), "a"), 0, pytest.fail)

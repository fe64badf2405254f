"""Training goes on whatever becomes of its telemetry, and takes the same path without it."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.errors import NonFiniteError
from aalnet.settings import Settings, TelemetrySettings
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.telemetry import board
from cluster.telemetry.targets import targets_folder
from cluster.training import loop
from cluster.training.recorder import Launch
from cluster.training.stop import Stop
from cluster.training.world import ProcessWorld
from tests.support.metric_samples import values_of
from tests.support.tiny_runs import tiny_settings, write_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a disk of 64 KiB over a folder, and fills it but for a few bytes."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs (root)")
        mounted.append(folder)
        with pytest.raises(OSError, match="No space left"):
            (folder / "full").write_bytes(bytes(2**20))

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def train(settings: Settings, folder: Path, **telemetry: Any) -> Run:
    run = Run(FolderStore(folder), "a")
    changed = settings.model_copy(update={"telemetry": TelemetrySettings(**telemetry)})
    run.claim(changed)
    assert launcher.train_here(run, changed, Placement(0, "cpu", "here"), Stop()) == "finished"
    return run


def test_training_goes_on_where_the_port_is_taken(
    settings: Settings, tmp_path: Path, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(settings, tmp_path / "store", port=taken_port)
    assert run.records()[-1]["status"] == "finished"
    assert capsys.readouterr().err.count("no metrics are served") == 1


def test_training_goes_on_where_nothing_can_be_announced(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("")
    run = train(settings, tmp_path / "store")
    assert run.records()[-1]["status"] == "finished"
    assert capsys.readouterr().err.count("will not find the metrics") == 1


def test_training_goes_on_where_the_cache_is_on_a_full_disk(
    settings: Settings, tmp_path: Path, full_disk: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    full_disk(tmp_path / "cache")
    run = train(settings, tmp_path / "store")
    assert run.records()[-1]["status"] == "finished"
    told = capsys.readouterr().err
    assert told.count("warning") == told.count("No space left") == 1


def test_training_goes_on_where_events_go_to_a_full_disk(
    settings: Settings, tmp_path: Path, full_disk: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(board, "FLUSH_S", 0.05)  # many tries
    full_disk(tmp_path / "store/runs/a/tensorboard")
    run = train(settings, tmp_path / "store", port=0, tensorboard=True)
    warnings = [record["text"] for record in run.records() if record["kind"] == "warning"]
    assert run.records()[-1]["status"] == "finished"
    (waits,) = [text for text in warnings if text.startswith("TensorBoard's files wait: ")]
    assert "No space left" in waits


def test_training_goes_on_where_events_have_no_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "store/runs/a").mkdir(parents=True)
    (tmp_path / "store/runs/a/tensorboard").write_text("a file where the folder should be")
    run = train(settings, tmp_path / "store", port=0, tensorboard=True)
    assert run.records()[-1]["status"] == "finished"
    assert run.status() == "finished"


def test_telemetry_can_be_off(settings: Settings, tmp_path: Path) -> None:
    train(settings, tmp_path / "store", port=0)
    assert not targets_folder().exists()


def test_telemetry_does_not_move_the_path(settings: Settings, tmp_path: Path) -> None:
    told_of, silent = (
        [record["terms"] for record in train(settings, tmp_path / name, port=port).records()
         if record["kind"] == "train"]
        for name, port in (("told", "auto"), ("silent", 0))
    )  # fmt: skip
    assert told_of == silent


def test_a_nan_is_told_before_the_end(settings: Settings, tmp_path: Path) -> None:
    broken = settings.optimizer.model_copy(update={"lr": 1e30, "warmup_images": 0})
    changed = settings.model_copy(update={"optimizer": broken})
    messages: list[Any] = []
    launch = Launch(time.time(), publish=messages.append)
    run = Run(FolderStore(tmp_path / "store"), "a")
    run.claim(changed)
    with pytest.raises(NonFiniteError):
        loop.train(run, changed, ProcessWorld(), torch.device("cpu"), lambda *figures: None, launch)
    assert run.records()[-1]["cause"] == "non_finite"
    last = values_of(messages[-1]["samples"])
    assert messages[-1]["status"] == "failed"
    assert last["aalnet_non_finite_total", ("a",)] == 1

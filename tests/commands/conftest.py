"""`aalnet` as it is typed, in a folder of its own, and a storage with a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Aalnet, front_door, storage_with_demo, working_folder
from tests.support.tiny_runs import tiny_values, write_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


@pytest.fixture
def type_(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Aalnet:
    return front_door(monkeypatch, capsys)


@pytest.fixture
def config(data: Path, here: Path) -> Path:
    return write_config(here / "demo.yaml", tiny_values(data))


@pytest.fixture(scope="module")
def storage(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storage_with_demo(tmp_path_factory.mktemp("storage"), data)

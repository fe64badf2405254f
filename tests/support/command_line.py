"""Commands as a person types them, in this process: its import of torch is paid once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aalnet.__main__ import main
from tests.support.tiny_runs import aalnet, tiny_values, write_config


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Aalnet = Callable[..., Done]


def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type commands in, without a storage or a Ray of the caller's."""
    here = folder / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("RAY_ADDRESS", "AALNET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    return here


def front_door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Aalnet:
    """A function that types `aalnet ...` with its arguments."""

    def type_(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["aalnet", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return Done(int(code or 0), out, err)

    return type_


def storage_with_demo(folder: Path, data: Path) -> Path:
    """A storage with the finished run `demo`."""
    config = write_config(folder / "demo.yaml", tiny_values(data))
    done = aalnet("train", config, "--storage", folder / "runs-here", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "runs-here"


def assert_refused(done: Done, *words: str, out: str | None = "") -> None:
    """Exit code 2, a line or few that say what is wrong, and nothing on standard output."""
    assert done.code == 2, (done.out, done.err)
    lines = done.err.strip().splitlines()
    assert done.err.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert 1 <= len(lines) <= 3, done.err
    assert "Traceback" not in done.out + done.err
    assert [word for word in words if word not in done.err] == [], done.err
    if out is not None:
        assert done.out == out


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file by its path."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

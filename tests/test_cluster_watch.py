"""`aalnet watch`: the figures of a run on a terminal, from its log."""

import io
import math
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.commands import watch
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.view.run_screen import RunScreen
from cluster.view.screen import BARS, History, sparkline
from tests.support.tiny_runs import aalnet_command, command_environment, tiny_settings, write_data

TERMS = {"entropy": 0.5, "separation": -0.4, "discriminator_accuracy": 0.9, "generator_norm": 3.0}
START: Record = {"kind": "start", "images": 0, "startup_s": 1.0, "workers": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(FolderStore(tmp_path / "store"), "a")
    found.claim(tiny_settings(write_data(tmp_path / "data")))
    return found


def train(images: int, **facts: Any) -> Record:
    return {"kind": "train", "images": images, "lr": 1e-3, "step_s": 0.02, "data_s": 1e-4,
            "images_per_s": 190.0, "terms": TERMS, **facts}  # fmt: skip


def evaluation(images: int, kid: float) -> Record:
    return {"kind": "evaluation", "images": images, "kid_unpaired_lite0": kid,
            "kid_unpaired_lite0_condition": 0.7, "diversity": 0.1, "seconds": 1.0,
            "ema_distance": 0.1}  # fmt: skip


def log(run: Run, *records: Record) -> None:
    for record in records:
        run.log(record)


def checkpoint(images: int) -> Record:
    return {"kind": "checkpoint", "images": images, "bytes": 2**20, "seconds": 1.0, "stall_s": 0.1}


def end(status: str, **facts: Any) -> Record:
    return {"kind": "end", "images": 32, "status": status, "train_seconds": 1.0, **facts}


def page_of(run: Run, width: int = 120) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    settings = run.settings()
    assert settings is not None
    screen = RunScreen(run.name, settings, console)
    records = run.records()
    screen.restore(records[:-1])
    for record in records[-1:]:
        screen.show(record)
    console.print(screen.page())
    return out.getvalue()


# What is drawn


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 8, ""),
        ([1.0], 8, BARS[0]),
        ([2.0, 2.0], 8, BARS[0] * 2),
        ([0.0, 7.0], 8, BARS[0] + BARS[-1]),
        (list(range(8)), 8, BARS),
        ([-1e308, 0.0, 1e308], 8, None),
    ],
)
def test_sparklines(values: list[float], width: int, drawn: str | None) -> None:
    found = sparkline(values, width)
    assert found == drawn if drawn is not None else len(found) <= width


@pytest.mark.parametrize("count", [9, 10, 100, 239])
def test_many_points_are_averaged_into_the_width(count: int) -> None:
    line = sparkline([float(i) for i in range(count)], 8)
    assert len(line) == 8
    assert [BARS.index(bar) for bar in line] == sorted(BARS.index(bar) for bar in line)


def test_a_history_keeps_what_changes_and_what_is_finite() -> None:
    history = History()
    for value in (1.0, 1.0, 2.0, math.nan, 3.0):
        history.add({("aalnet_term", (("term", "x"),)): value})
    assert history.sparkline("aalnet_term", term="x") == BARS[0] + BARS[4] + BARS[-1]
    assert history.get("aalnet_term", term="x") == 3.0
    assert history.by("aalnet_term", "term") == {"x": 3.0}


@pytest.mark.parametrize("width", [60, 80, 116, 200])
def test_the_page_shows_the_figures_of_the_log(run: Run, width: int) -> None:
    recovered = {"cause": "crash", "recovery_s": 5.0, "lost_images": 4}
    log(run, START, train(8), evaluation(8, 0.5), checkpoint(8), train(16), evaluation(16, 0.25))
    log(run, {**START, "images": 8, **recovered}, {"kind": "warning", "images": 8, "text": "hm"})
    text = page_of(run, width)
    for word in ("run a", "running", "8/32", "190 images/s", "entropy", "separation", "D right",
                 "gradient, G", "kid_unpaired_lite0", "0.250", "floor 0.700", "diversity",
                 "goodput", "1.0 MiB", "1 after crash", "hm"):  # fmt: skip
        assert word in text or width == 60, word
    assert max(map(len, text.splitlines())) <= width
    assert BARS[-1] + BARS[0] in text  # the distance fell


def test_a_page_of_nothing(run: Run) -> None:
    text = page_of(run)
    assert "starting" in text
    assert "no evaluation yet" in text


def test_a_hostile_log_draws_a_page(run: Run) -> None:
    log(
        run, START, train(8, terms="x"), train(16, lr="x"), {"kind": "evaluation", "images": 16},
        {"kind": "warning", "images": 16, "text": "\x1b[31mred\x07"}, train(24),
        {"kind": "end", "images": 24},
    )  # fmt: skip
    text = page_of(run)
    assert "24/32" in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text


# The command


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1)])
def test_on_a_terminal_the_page_stays_and_the_exit_code_tells(
    run: Run, status: str, code: int
) -> None:
    log(run, START, train(16), evaluation(16, 0.5), end(status))
    leader, follower = pty.openpty()
    command = aalnet_command("watch", "a", "--storage", run.store.uri)
    environment = command_environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the terminal has gone with its last process
            break
        shown += part
    os.close(leader)
    assert process.wait(30) == code
    assert "▁" in shown.decode() or "█" in shown.decode()
    assert status in shown.decode()
    assert "Traceback" not in shown.decode()


def test_runs_watch_is_the_same_command() -> None:
    from cluster.commands import runs

    commands = {command.name: command.callback for command in runs.app.registered_commands}
    assert commands["watch"] is watch.watch


def test_a_run_is_watched_without_optuna(run: Run) -> None:
    """The extra `train` is enough; a campaign names the one it needs."""
    log(run, START, train(16), end("finished"))
    code = "import sys; sys.modules['optuna'] = None; from aalnet.__main__ import main; main()"
    results = [
        subprocess.run(
            [sys.executable, "-c", code, "watch", *arguments, "--storage", run.store.uri],
            env=command_environment(), capture_output=True, text=True, check=False,
        )
        for arguments in (("a",), ("--campaign", "search"))
    ]  # fmt: skip
    assert results[0].returncode == 0, results[0].stderr
    assert results[0].stdout == "run `a` is finished: 32 images\n"
    assert results[1].returncode == 2
    assert "aalnet-cloud[tune]" in results[1].stderr

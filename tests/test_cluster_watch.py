"""`aalnet watch`: the figures of a run on a terminal, from its log and from its scrape address."""

import io
import math
import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aalnet.settings import TelemetrySettings
from cluster.commands import watch
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.telemetry.exporter import Exporter
from cluster.telemetry.run_export import RunExport
from cluster.view import scrape
from cluster.view.run_screen import LogScreen
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
    return {"kind": "evaluation", "images": images, "kid_lite0": kid, "kid_lite0_condition": 0.7,
            "diversity": 0.1, "seconds": 1.0, "ema_distance": 0.1}  # fmt: skip


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
    screen = LogScreen(run.name, settings, console)
    for record in run.records():
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
    assert history.line("aalnet_term", 8, term="x") == BARS[0] + BARS[4] + BARS[-1]
    assert history.get("aalnet_term", term="x") == 3.0
    assert history.by("aalnet_term", "term") == {"x": 3.0}


@pytest.mark.parametrize("width", [60, 80, 116, 200])
def test_the_page_shows_the_figures_of_the_log(run: Run, width: int) -> None:
    recovered = {"cause": "crash", "recovery_s": 5.0, "lost_images": 4}
    log(run, START, train(8), evaluation(8, 0.5), checkpoint(8), train(16), evaluation(16, 0.25))
    log(run, {**START, "images": 8, **recovered}, {"kind": "warning", "images": 8, "text": "hm"})
    text = page_of(run, width)
    for word in ("run a", "running", "8/32", "190 images/s", "entropy", "separation", "D right",
                 "gradient, G", "kid_lite0", "0.250", "floor 0.700", "diversity", "goodput",
                 "1.0 MiB", "1 after crash", "hm"):  # fmt: skip
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


def typed(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(watch.app, arguments)
    assert result.exit_code == code, result.output
    return result.output


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


@pytest.fixture
def told(run: Run) -> Iterator[tuple[RunExport, str]]:
    """A run's exporter, and where it is scraped."""
    settings = run.settings()
    assert settings is not None
    export = RunExport("a", settings, "cpu", 1)
    with Exporter("run/a", TelemetrySettings(), export.read, pytest.fail) as exporter:
        yield export, f"http://127.0.0.1:{exporter.port}"


def message(status: str, images: int) -> dict[str, Any]:
    values = [["aalnet_run_images", ["a"], images], ["aalnet_images_total", ["a"], images],
              ["aalnet_goodput_ratio", ["a"], 0.9]]  # fmt: skip
    counts = [0] * 14
    counts[3] = images // 4
    spreads = [["aalnet_step_seconds", ["a", "0"], counts, 0.02 * images / 4]]
    return {"at_s": images, "status": status, "values": values, "spreads": spreads}


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("stopped", 0)])
def test_from_an_address_until_the_end(
    told: tuple[RunExport, str], monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    export, url = told
    monkeypatch.setattr(scrape, "POLL_S", 0.1)
    export.take(0, message("running", 8))
    timer = threading.Timer(0.5, lambda: export.take(0, message(status, 32)))
    timer.start()
    lines = typed("a", "--url", url, code=code).splitlines()
    timer.join()
    assert lines[0].startswith("running  images 8/32")
    assert lines[-1].startswith(f"{status}  images 32/32")
    assert "goodput 0.900" in lines[-1]


def test_paces_are_means_between_two_scrapes(told: tuple[RunExport, str]) -> None:
    export, url = told
    export.take(0, message("running", 8))
    before = scrape._look("run", "a", f"{url}/metrics")
    export.take(0, message("running", 16))
    now = scrape._look("run", "a", f"{url}/metrics")
    found = {name: value for name, _, value in scrape._paces(before, now)}
    assert found["step_s"] == pytest.approx(0.02)
    assert found["images_per_s"] == pytest.approx(8 / (now.at_s - before.at_s))
    restarted = scrape.Look(now.at_s + 1, [])
    assert "images_per_s" not in {name for name, _, _ in scrape._paces(now, restarted)}


def test_an_address_of_another_run_or_of_nothing(told: tuple[RunExport, str]) -> None:
    for arguments, words in (
        (("b", "--url", told[1]), "tells of `a`, not of `b`"),
        (("a", "--url", "http://127.0.0.1:9"), "cannot be read"),
        (("a", "--url", "nonsense"), "cannot be read"),
    ):
        result = CliRunner().invoke(watch.app, arguments)
        assert words in str(result.exception)


def test_an_address_that_goes_silent_ends_the_watch(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "POLL_S", 0.05)
    monkeypatch.setattr(scrape, "GIVEN_UP_S", 0.3)
    settings = run.settings()
    assert settings is not None
    export = RunExport("a", settings, "cpu", 1)
    with Exporter("run/a", TelemetrySettings(), export.read, pytest.fail) as exporter:
        found = scrape.looks("run", "a", f"http://127.0.0.1:{exporter.port}")
        assert next(found).state == "starting"
    with pytest.raises(scrape.AddressGone, match="does not answer any more"):
        list(found)

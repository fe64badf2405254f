"""A run's /metrics: ports, announcements, and a last scrape at the end."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.registry import Collector

from aalnet.settings import TelemetrySettings
from cluster.telemetry import exporter
from cluster.telemetry.exporter import ScrapeTimes, serve
from cluster.telemetry.metrics import RunMetrics
from cluster.telemetry.targets import Target, announced, targets_folder

AS_PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "5"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class OneStep(Collector):
    """A collector of one counter."""

    def collect(self) -> Iterator[Any]:
        metrics = RunMetrics(run="a")
        metrics.count("aalnet_steps_total")
        yield from (family for family in metrics.registry.collect() if family.samples)


def serving(
    warnings: list[str], instance: str = "run/a", **telemetry: Any
) -> contextlib.AbstractContextManager[int | None]:
    settings = TelemetrySettings(**{"port": 0} | telemetry)
    return serve(instance, settings, OneStep(), warnings.append)


def scrape(port: int | None, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


# Ports


def test_a_taken_port_is_warned_of_once(taken_port: int) -> None:
    warned: list[str] = []
    with serving(warned, port=taken_port) as port:
        assert port is None
    assert len(warned) == 1
    assert "Address already in use" in warned[0]
    assert "telemetry.port" in warned[0]


def test_auto_takes_a_free_port_where_the_usual_one_is_taken(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PORT", taken_port)
    warned: list[str] = []
    with serving(warned, port="auto") as port:
        assert port not in {None, taken_port}
        assert "aalnet_steps_total" in scrape(port)
    assert warned == []


def test_port_0_serves_nothing() -> None:
    before = threading.active_count()
    with serving([]) as port:
        assert port is None
        assert threading.active_count() == before
    assert not targets_folder().exists()


# Announcements


def test_a_run_is_announced_while_it_lasts() -> None:
    with serving([], port="auto") as port:
        (path,) = targets_folder().glob("*.json")
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        assert entry["targets"] == [f"127.0.0.1:{port}"]
        assert entry["labels"]["instance"] == "run/a"
        assert entry["labels"]["__pid"] == str(os.getpid())
    assert list(targets_folder().iterdir()) == []


def test_a_scrape_that_is_meant_for_another_run_gets_nothing() -> None:
    """As where a run takes the port of one that ended, before Prometheus has seen the end."""
    with serving([], port="auto") as port:
        (path,) = targets_folder().glob("*.json")
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        assert entry["labels"]["__param_instance"] == "run/a"
        address = f"http://127.0.0.1:{port}/metrics?instance="
        with urllib.request.urlopen(f"{address}run%2Fa") as answer:
            assert b"aalnet_steps_total" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}run%2Fb")


def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    warned: list[str] = []
    with serving(warned, port="auto") as port:
        assert "aalnet_steps_total" in scrape(port)
    assert len(warned) == 1
    assert "Prometheus will not find" in warned[0]


def test_files_of_the_dead_are_swept_and_hostile_ones_are_left() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    folder = targets_folder()
    folder.mkdir(parents=True)
    entry = {
        "targets": ["127.0.0.1:1"],
        "labels": {"instance": "run/dead", "__pid": str(child.pid)},
    }
    (folder / "dead.json").write_text(json.dumps([entry]))
    (folder / "odd.json").write_text('{"targets": 3}')
    (folder / "cut.json").write_bytes(b'[{"targets": ["\xff')
    with announced(Target("run/a", "0.0.0.0", 9464, os.getpid()), pytest.fail):
        assert sorted(path.name for path in folder.iterdir()) == [
            "cut.json", "odd.json", f"run-a-{os.getpid()}.json",
        ]  # fmt: skip
        (entry,) = json.loads((folder / f"run-a-{os.getpid()}.json").read_text())
        assert entry["targets"] == ["127.0.0.1:9464"]


# The end


@pytest.fixture
def scrapes(monkeypatch: pytest.MonkeyPatch) -> ScrapeTimes:
    """Those that `serve` notes."""
    found = ScrapeTimes()
    monkeypatch.setattr(exporter, "ScrapeTimes", lambda: found)
    return found


def test_the_end_waits_for_one_more_scrape_where_somebody_scrapes(scrapes: ScrapeTimes) -> None:
    done = threading.Event()

    def look(port: int | None) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while not done.wait(0.2):
                scrape(port, **AS_PROMETHEUS)

    with serving([], port="auto") as port:
        looking = threading.Thread(target=look, args=(port,))
        looking.start()
        time.sleep(1)
        before = scrapes.at_s[-1]
        ended_s = time.monotonic()
    assert scrapes.at_s[-1] > before
    assert time.monotonic() - ended_s < 3
    done.set()
    with pytest.raises(OSError, match="refused"):
        scrape(port)
    looking.join(timeout=5)


def test_the_end_waits_for_nobody_else(
    scrapes: ScrapeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(*_: Any) -> None:
        pytest.fail("nobody is to be waited for")

    monkeypatch.setattr(threading.Condition, "wait_for", waits)
    with serving([], port="auto"):
        pass
    with serving([], port="auto") as port:
        scrape(port, **AS_PROMETHEUS)  # once: nobody knows when again
    scrapes.at_s.clear()
    with serving([], port="auto") as port:
        for _ in range(3):
            scrape(port)  # a person's look
    with contextlib.suppress(KeyboardInterrupt), serving([], port="auto") as port:
        for _ in range(3):
            scrape(port, **AS_PROMETHEUS)
        raise KeyboardInterrupt
    with serving([], port="auto"):  # a Prometheus that has gone
        scrapes.at_s.extend([time.monotonic() - 30, time.monotonic() - 25])


def test_a_hundred_runs_leave_nothing_behind() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def one(number: int) -> bool:
        with serving([], f"run/{number}", port="auto") as port:
            return 'aalnet_steps_total{run="a"} 1.0' in scrape(port)

    with ThreadPoolExecutor(25) as pool:
        assert all(pool.map(one, range(100)))
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert list(targets_folder().iterdir()) == []

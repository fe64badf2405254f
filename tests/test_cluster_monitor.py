"""`aalnet monitor`: a real Prometheus that finds what runs here, and ends when it should."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from aalnet.settings import TelemetrySettings
from cluster.telemetry import monitor
from cluster.telemetry.exporter import Exporter
from tests.support.prometheus_server import (
    environment_with,
    prometheus_server,
    query,
    require_prometheus,
    value,
    wait_for,
)
from tests.support.tiny_runs import aalnet_command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def typed(cache: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        aalnet_command("monitor", *arguments), env=environment_with(cache) | environment,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def snapshot(images: float) -> dict[str, Any]:
    return {"values": [["aalnet_run_images", ["a"], images]], "spreads": []}


def test_up_finds_what_runs_and_down_ends_it(cache: Path) -> None:
    telemetry = TelemetrySettings()
    with prometheus_server(cache) as base:
        assert value(base, "aalnet_run_images") is None
        assert _alerts(base) >= {"AALNetTrainingStalled"}
        images = 7
        with Exporter("run/a", telemetry, lambda: [snapshot(images)], pytest.fail):
            labels = wait_for("the run", lambda: query(base, "aalnet_run_images"))[0]["metric"]
            assert (labels["instance"], labels["run"], labels["job"]) == ("run/a", "a", "aalnet")
            assert not [label for label in labels if label.startswith("__p")]
            told = typed(cache, "status", "--json")
            assert told.returncode == 0, told.stderr
            found = json.loads(told.stdout)
            assert found["servers"] == {"prometheus": base}
            assert [(entry["instance"], entry["health"]) for entry in found["scraped"]
                    if entry["instance"] == "run/a"] == [("run/a", "up")]  # fmt: skip
            assert "up      aalnet  run/a" in typed(cache, "status").stdout
            again = typed(cache, "up", "--detach")
            assert again.returncode == 0
            assert "running already" in again.stdout
            assert base in again.stdout
            often = "count_over_time(aalnet_run_images[1m])"  # a second scrape tells how often
            wait_for("a second scrape", lambda: (value(base, often) or 0) >= 2)
            images = 8
        # What changed at the very end was scraped still; then the series go at once.
        wait_for("the end", lambda: value(base, "max_over_time(aalnet_run_images[1m])") == 8)
        wait_for("an end", lambda: value(base, "count(aalnet_run_images) or vector(0)") == 0)
    with pytest.raises(OSError, match="refused"):
        query(base, "up")
    gone = typed(cache, "status")
    assert gone.returncode == 1
    assert "aalnet monitor up" in gone.stdout
    assert typed(cache, "down").stdout == "none runs\n"


def _alerts(base: str) -> set[str]:
    """The names of the alert rules that a Prometheus has loaded."""
    with urllib.request.urlopen(f"{base}/api/v1/rules?type=alert", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    return {rule["name"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(cache: Path, number: signal.Signals, code: int) -> None:
    require_prometheus()
    process = subprocess.Popen(
        aalnet_command("monitor", "up"), env=environment_with(cache), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().split()[1]
    wait_for("Ctrl-C ends it", lambda: "Ctrl-C" in process.stdout.readline())  # type: ignore[union-attr]
    assert query(url, "vector(1)")
    process.send_signal(number)
    out, error = process.communicate(timeout=40)
    assert process.returncode == code, out + error
    assert "Traceback" not in error
    with pytest.raises(OSError, match="refused"):
        query(url, "up")


def test_without_prometheus_it_says_how_to_get_it(cache: Path) -> None:
    told = typed(cache, "up", PATH="/nonexistent")
    assert told.returncode == 2
    assert "apt-get install prometheus" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_taken_port_is_a_mistake(cache: Path) -> None:
    require_prometheus()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = typed(cache, "up", "--detach", "--port", str(port))
    assert told.returncode == 2
    assert told.stderr == (
        f"error: --port {port}: somebody listens there; without it a free one is taken\n"
    )
    assert monitor.running() == []


def test_a_folder_that_cannot_be_used_is_a_mistake(cache: Path) -> None:
    require_prometheus()
    cache.write_text("a file where the folder should be")
    told = typed(cache, "up", "--detach")
    assert told.returncode == 2
    assert "AALNET_CACHE" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_prometheus_that_does_not_start_tells_why(cache: Path) -> None:
    require_prometheus()
    monitor.state_folder().mkdir(parents=True)
    (monitor.state_folder() / "data").write_text("no database")
    told = typed(cache, "up", "--detach")
    assert told.returncode == 1
    assert "prometheus did not start" in told.stderr.lower()
    assert "not a directory" in told.stderr
    assert monitor.running() == []


def test_the_configuration_and_the_rules_are_good(cache: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    cache.mkdir()
    path, rules = cache / "prometheus.yml", monitor.write_rules(cache)
    assert rules is not None
    groups = yaml.safe_load(rules.read_text())["groups"]
    assert groups == yaml.safe_load(monitor.RULES.read_text())["spec"]["groups"]
    path.write_text(yaml.safe_dump(monitor.prometheus_config(5.0, rules)))
    told = subprocess.run(["promtool", "check", "config", path], capture_output=True, check=False)
    assert told.returncode == 0, told


def test_without_the_repository_it_goes_on_without_rules(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitor, "RULES", cache / "none.yaml")
    assert monitor.write_rules(cache) is None
    assert capsys.readouterr().err.count("warning: no alert rules") == 1
    assert monitor.prometheus_config(5.0, None)["rule_files"] == []


def test_a_stranger_who_got_the_pid_is_left_alone(cache: Path) -> None:
    folder = monitor.state_folder()
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        entry = {"name": "Prometheus", "pid": stranger.pid, "url": "http://x", "config": "/no/such"}
        (folder / "servers.json").write_text(json.dumps([entry]))
        assert monitor.running() == []
        assert monitor.stop() == []
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"pid": 1}]', '[["x"]]'])
def test_a_damaged_state_file_is_none(cache: Path, text: str) -> None:
    monitor.state_folder().mkdir(parents=True)
    (monitor.state_folder() / "servers.json").write_text(text)
    assert monitor.running() == []


GRAFANA = """#!/bin/sh
env | grep ^GF_ > "$GF_PATHS_DATA.env"; echo "$@" >> "$GF_PATHS_DATA.env"
exec {python} -c '
import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): ...
port = int(os.environ["GF_SERVER_HTTP_PORT"])
http.server.HTTPServer((os.environ["GF_SERVER_HTTP_ADDR"], port), Page).serve_forever()'
"""


def test_grafana_is_started_where_it_is_installed(cache: Path, tmp_path: Path) -> None:
    """Against a stand-in that keeps what it was started with."""
    require_prometheus()
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "grafana"
    script.write_text(GRAFANA.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    told = typed(cache, "up", "--detach", PATH=f"{programs}:{os.environ['PATH']}")
    try:
        assert told.returncode == 0, told.stderr
        urls = {line.split()[0]: line.split()[1] for line in told.stdout.splitlines()[:2]}
        assert urls.keys() == {"Prometheus", "Grafana"}
        folder = monitor.state_folder() / "grafana"
        seen = dict(line.split("=", 1) for line in
                    (folder / "data.env").read_text().splitlines() if "=" in line)  # fmt: skip
        assert seen["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
        provisioning = Path(seen["GF_PATHS_PROVISIONING"])
        source = yaml.safe_load((provisioning / "datasources/aalnet.yaml").read_text())
        assert source["datasources"][0]["url"] == urls["Prometheus"]
        provider = yaml.safe_load((provisioning / "dashboards/aalnet.yaml").read_text())
        assert Path(provider["providers"][0]["options"]["path"]) == monitor.DASHBOARDS
        assert provider["providers"][0]["type"] == "file"
        pids = [server.pid for server in monitor.running()]
        assert len(pids) == 2
    finally:
        assert typed(cache, "down").stdout.count("is ended") == 2
    time.sleep(0.2)
    assert monitor.running() == []

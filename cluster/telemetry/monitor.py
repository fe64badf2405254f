"""A Prometheus of one's own on this machine, wired to the runs here; Grafana too where it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from aalnet.errors import AalnetError, UserError
from cluster.cache import cache_folder
from cluster.telemetry.targets import targets_folder

# Data files of the repository, the same that Kubernetes gets; an installed wheel is without them.
MONITORING = Path(__file__).resolve().parents[2] / "deploy/kubernetes/base/monitoring"
RULES, DASHBOARDS = MONITORING / "alert-rules.yaml", MONITORING / "dashboards"
RAY_TARGETS = Path("/tmp/ray/prom_metrics_service_discovery.json")  # Ray's own, kept up by its head
LOOPBACK = "127.0.0.1"
READY_S = 60.0
STOP_S = 20.0
PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000


class MonitorError(AalnetError):
    """A monitoring server did not start."""


@dataclass(frozen=True)
class Server:
    """A server that runs: its name, process and address."""

    name: str
    pid: int
    url: str
    config: str  # stands in its command line or environment: a pid may have been given anew

    @property
    def alive(self) -> bool:
        """Is it still that process?"""
        try:
            parts = [Path(f"/proc/{self.pid}/{part}").read_bytes() for part in
                     ("cmdline", "environ")]  # fmt: skip
        except OSError:
            return False
        return any(self.config.encode() in part for part in parts)


def state_folder() -> Path:
    """Where the servers keep their configuration, logs and data."""
    return cache_folder() / "monitor"


def running() -> list[Server]:
    """The servers that `start` left running."""
    try:
        entries = json.loads((state_folder() / "servers.json").read_text(encoding="utf-8"))
        servers = [Server(**entry) for entry in entries]
    except (OSError, ValueError, TypeError):
        return []
    return [server for server in servers if server.alive]


def start(port: int | None = None, scrape_s: float = 5.0) -> list[Server]:
    """Start Prometheus, and Grafana where it is installed; both listen to loopback only.

    Raises:
        UserError: Prometheus is not installed, the port is taken, or the folder not writable.
        MonitorError: Prometheus does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise UserError("Prometheus is not installed; on Debian: apt-get install prometheus")
    if port is not None and not _is_free(port):
        raise UserError(f"--port {port}: somebody listens there; without it a free one is taken")
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        targets_folder().mkdir(parents=True, exist_ok=True)
        servers = [_start_prometheus(program, folder, port, scrape_s)]
        _remember(servers)
        grafana = shutil.which("grafana") or shutil.which("grafana-server")
        if grafana is not None:
            try:
                servers.append(_start_grafana(grafana, folder / "grafana", servers[0].url))
                _remember(servers)
            except MonitorError as error:
                print(f"warning: {error}", file=sys.stderr)
    except OSError as error:
        raise UserError(f"{folder} cannot be used: {error}; AALNET_CACHE moves it") from error
    return servers


def _remember(servers: list[Server]) -> None:
    text = json.dumps([asdict(server) for server in servers])
    (state_folder() / "servers.json").write_text(text, encoding="utf-8")


def stop() -> list[Server]:
    """End the servers that run; gives those that did."""
    servers = running()
    for server in reversed(servers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
    end_s = time.monotonic() + STOP_S
    for server in servers:
        while server.alive and time.monotonic() < end_s:
            _reap(server.pid)
            time.sleep(0.1)
        if server.alive:
            os.kill(server.pid, signal.SIGKILL)
            _reap(server.pid)
    (state_folder() / "servers.json").unlink(missing_ok=True)
    return servers


def prometheus_config(scrape_s: float, rules: Path | None) -> dict[str, Any]:
    """What is scraped: the processes announced on this machine, and a local Ray's own metrics."""
    return {
        "global": {"scrape_interval": f"{scrape_s:g}s", "evaluation_interval": f"{scrape_s:g}s"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            # Ray's file is a link to a session's: only looking again finds what changed behind it.
            {
                "job_name": name,
                "file_sd_configs": [{"files": [str(files)], "refresh_interval": "5s"}],
            }
            for name, files in (("aalnet", targets_folder() / "*.json"), ("ray", RAY_TARGETS))
        ],
    }


def write_rules(folder: Path) -> Path | None:
    """The alert rules as Prometheus itself reads them; None, and a warning, where there are none.

    On Kubernetes they are an object for the Prometheus operator: its `spec` is that file.
    """
    try:
        rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
    except FileNotFoundError:
        told = f"no alert rules and dashboards: {MONITORING} is part of the repository"
        print(f"warning: {told}; install from it (pip install -e) to have them", file=sys.stderr)
        return None
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(rules, sort_keys=False), encoding="utf-8")
    return path


def _start_prometheus(program: str, folder: Path, port: int | None, scrape_s: float) -> Server:
    config = folder / "prometheus.yml"
    plain = prometheus_config(scrape_s, write_rules(folder))
    config.write_text(yaml.safe_dump(plain), encoding="utf-8")
    listen = f"{LOOPBACK}:{port or free_port(PROMETHEUS_PORT)}"
    command = [
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=30d", f"--web.listen-address={listen}",
    ]  # fmt: skip
    url = f"http://{listen}"
    return _start("prometheus", command, {}, folder, Server("Prometheus", 0, url, str(config)))


def _start_grafana(program: str, folder: Path, prometheus_url: str) -> Server:
    """Grafana with our dashboards and this Prometheus, for whoever can reach loopback."""
    provisioning = folder / "provisioning"
    source = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "isDefault": True,
              "uid": "prometheus", "url": prometheus_url}  # fmt: skip
    provider = {"name": "AALNet", "folder": "AALNet", "type": "file",
                "options": {"path": str(DASHBOARDS)}}  # fmt: skip
    for kind, entries in (("datasources", source), ("dashboards", provider)):
        path = provisioning / kind / "aalnet.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        key = "datasources" if kind == "datasources" else "providers"
        path.write_text(yaml.safe_dump({"apiVersion": 1, key: [entries]}), encoding="utf-8")
    port = free_port(GRAFANA_PORT)
    environment = {
        "GF_PATHS_DATA": str(folder / "data"), "GF_PATHS_LOGS": str(folder / "logs"),
        "GF_PATHS_PROVISIONING": str(provisioning),
        "GF_SERVER_HTTP_ADDR": LOOPBACK, "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false", "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }  # fmt: skip
    command = [program, *(["server"] if Path(program).name == "grafana" else [])]
    home = Path("/usr/share/grafana")
    command += ["--homepath", str(home)] if home.is_dir() else []
    server = Server("Grafana", 0, f"http://{LOOPBACK}:{port}", str(provisioning))
    return _start("grafana", command, environment, folder, server)


def _start(
    name: str, command: list[str], environment: Mapping[str, str], folder: Path, wanted: Server
) -> Server:
    """Start a server in a session of its own, and wait until it answers."""
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
    ready = {"prometheus": "/-/ready", "grafana": "/api/health"}[name]
    end_s, is_ready = time.monotonic() + READY_S, False
    try:
        while not is_ready and time.monotonic() < end_s and process.poll() is None:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(wanted.url + ready, timeout=5).close()
                is_ready = True
    finally:  # Ctrl-C too
        if not is_ready:
            process.kill()
            process.wait()
    if is_ready:
        return replace(wanted, pid=process.pid)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
    errors = [line for line in lines if "level=error" in line] or lines[-1:]
    raise MonitorError(f"{wanted.name} did not start: {errors[-1]}; see {log}")


def scraped(url: str) -> list[dict[str, Any]]:
    """What a Prometheus scrapes, as its API tells it. Raises MonitorError."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/targets?state=active", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["activeTargets"]
    except (OSError, ValueError, KeyError) as error:
        raise MonitorError(f"Prometheus at {url} does not answer: {error}") from error
    return found


def free_port(wanted: int) -> int:
    """A port on loopback that nobody listens on: this one if it may be."""
    with socket.create_server((LOOPBACK, wanted if _is_free(wanted) else 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True


def _reap(pid: int) -> None:
    """Let a child of this process go; another's child is that one's business."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)

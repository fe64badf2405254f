"""A Ray cluster of one node on this machine, as `ray start` makes it, with token authentication."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.launch.ray_session import LOOPBACK
from tests.support.s3_server import free_ports
from tests.support.tiny_runs import command_environment

START_S = 150.0
MARK = "AALNET_TEST_CLUSTER"  # in the environment of all that belong together
BIN = Path(sys.executable).parent
TOKEN = "aalnet-tests-" + "1" * 32


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    pid: int  # of `ray start --block`; the leader of the session that all its processes are in
    port: int
    dashboard: str

    @property
    def environment(self) -> dict[str, str]:
        """For a command that uses the cluster."""
        return {
            **command_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def pids(self) -> list[int]:
        return marked(str(self.port))


def marked(mark: str) -> list[int]:
    """Processes that bear the mark in their environment, and their children (who hide theirs)."""
    owned = {int(p.name) for p in Path("/proc").glob("[0-9]*") if _bears(p, f"{MARK}={mark}")}
    children = _children()
    waiting = list(owned)
    while waiting:
        found = set(children.get(waiting.pop(), [])) - owned
        owned |= found
        waiting += found
    return sorted(owned)


def _bears(process: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return text.encode() in (process / "environ").read_bytes().split(b"\0")
    return False


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text(errors="replace").rpartition(") ")[2].split()[1])
            found.setdefault(parent, []).append(int(stat.parent.name))
    return found


@contextlib.contextmanager
def ray_cluster(cpus: int = 2) -> Iterator[RayCluster]:
    """A head with `cpus`; every process of it is killed by its pid at the end."""
    with tempfile.TemporaryDirectory(prefix="aalray", ignore_cleanup_errors=True) as folder:
        port, dashboard, client, agent, metrics = free_ports(5)
        log = Path(folder, "start.log")
        command = [
            str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
            f"--temp-dir={folder}/ray", "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        marks = {"RAY_ADDRESS": f"127.0.0.1:{port}", MARK: str(port)}
        made = RayCluster(0, port, f"http://127.0.0.1:{dashboard}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=made.environment | marks | LOOPBACK, stdout=output, stderr=output,
                cwd=folder, start_new_session=True,
            )  # fmt: skip
        try:
            end_s = time.monotonic() + START_S
            while b"Ray runtime started" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"no Ray: {log.read_text(encoding='utf-8')[-800:]}")
                time.sleep(0.2)
            yield RayCluster(process.pid, port, made.dashboard)
        finally:
            left = made.pids()  # while they are one family
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            kill({*left, *made.pids()})
            process.wait()

"""A Ray cluster of one node on this machine, as `ray start` makes it, with token authentication."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.launch.ray_session import LOOPBACK
from tests.support.processes import MARK, kill, marked
from tests.support.s3_server import free_ports
from tests.support.tiny_runs import command_environment

START_S = 150.0
BIN = Path(sys.executable).parent
TOKEN = "aalnet-tests-" + "1" * 32


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    pid: int  # of `ray start --block`; the leader of the session that all its processes are in
    port: int
    dashboard: str

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a command that joins the cluster or sends it a job."""
        return {
            **command_environment(),
            **LOOPBACK,  # else Ray looks for 127.0.0.1 at the machine's own address
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def pids(self) -> list[int]:
        """Of all its processes, as they are now."""
        return marked(str(self.port))


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
        made = RayCluster(0, port, f"http://127.0.0.1:{dashboard}")
        marks = {"RAY_ADDRESS": made.address, MARK: str(port)}

        def start() -> subprocess.Popen[bytes]:
            with log.open("wb") as output:
                return subprocess.Popen(
                    command, env=made.environment | marks, stdout=output, stderr=output,
                    cwd=folder, start_new_session=True,
                )  # fmt: skip

        process, end_s = start(), time.monotonic() + START_S
        try:
            while b"Ray runtime started" not in log.read_bytes():
                if time.monotonic() > end_s:
                    raise RuntimeError(f"no Ray: {log.read_text(encoding='utf-8')[-800:]}")
                if process.poll() is not None:  # Ray gives up after 30 s of a busy machine
                    kill(made.pids())
                    process = start()
                time.sleep(0.2)
            yield RayCluster(process.pid, port, made.dashboard)
        finally:
            left = made.pids()  # while they are one family
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            kill({*left, *made.pids()})
            process.wait()

"""Servers that are measured side by side, each in a process group of its own, and their load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.endpoint_models import free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class Server:
    """A server in a process group of its own; PORT in its arguments becomes its port."""

    def __init__(self, arguments: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, *(str(self.port) if a == "PORT" else a for a in arguments)],
            cwd=ROOT, env=os.environ | ENVIRONMENT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.process.pid, number)

    def load(self, images: list[str], samples: int, *options: str) -> dict[str, Any]:
        """What tests.support.load measures, at requests of so many samples.

        Raises RuntimeError at answers but 200 and 429.
        """
        report = module("tests.support.load", f"{self.url}/v1/samples", *images, "--field",
                        "label=objects", "--field", f"num_samples={samples}", *options)  # fmt: skip
        if set(report["counts"]) - {"200", "429"} or "200" not in report["counts"]:
            raise RuntimeError(f"{self.url} answered {report['counts']}")
        return report

    def warm(self, images: list[str]) -> None:
        """Load it until it answers: some listen before they can. Raises TimeoutError."""
        for _ in range(20):
            with contextlib.suppress(RuntimeError):
                self.load(images, 1, "--seconds", "1")
                return
        raise TimeoutError(f"{self.url} does not answer")

    def wait(self) -> None:
        """Until somebody listens. Raises TimeoutError after a minute."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.2)
        raise TimeoutError(f"no server at {self.url}")

    def resident_mib(self) -> float:
        """Its memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match[1]) / 1024 if match else 0.0

    def end(self) -> None:
        """Stop it, by SIGKILL after 15 s."""
        self.signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def servers(commands: dict[str, list[str]], images: list[str]) -> Iterator[dict[str, Server]]:
    """Servers by name, warm; ended with the block."""
    running = {name: Server(command) for name, command in commands.items()}
    try:
        for server in running.values():
            server.wait()
        for server in running.values():
            server.warm(images)
        yield running
    finally:
        for server in running.values():
            server.end()


def module(name: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))

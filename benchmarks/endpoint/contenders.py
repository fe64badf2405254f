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

ROOT = Path(__file__).resolve().parents[2]


class Contender:
    """A server in a process group of its own."""

    def __init__(self, arguments: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        command = [sys.executable, *(self.port if a == "PORT" else a for a in arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """Until it answers anything at all."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(self.port)), timeout=1).close()
                return
            time.sleep(0.2)
        raise TimeoutError(f"no server at {self.url}")

    def end(self) -> None:
        """Stop it, by SIGKILL after 15 s."""
        self.signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


def environment() -> dict[str, str]:
    """One torch thread, no usage report."""
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def module(name: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT, env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def load(contender: Contender, images: list[str], *arguments: str) -> dict[str, Any]:
    """What tests.support.load measured. Raises RuntimeError at answers but 200 and 429."""
    seen = module(
        "tests.support.load", f"{contender.url}/v1/samples", *images, "--field", "label=objects",
        *arguments,
    )  # fmt: skip
    if set(seen["counts"]) - {"200", "429"} or "200" not in seen["counts"]:
        raise RuntimeError(f"{contender.url} answered {seen['counts']}")
    return seen


def warm(contender: Contender, images: list[str]) -> None:
    """Until it answers: some listen before they can."""
    for _ in range(20):
        with contextlib.suppress(RuntimeError):
            load(contender, images, "--seconds", "1", "--field", "num_samples=1")
            return
    raise TimeoutError(f"{contender.url} does not answer")


@contextlib.contextmanager
def contenders(commands: dict[str, list[str]]) -> Iterator[dict[str, Contender]]:
    """Servers by name, ended with the block."""
    running = {name: Contender(command) for name, command in commands.items()}
    try:
        for each in running.values():
            each.wait()
        yield running
    finally:
        for each in running.values():
            each.end()


def resident_mib(contender: Contender) -> float:
    """Memory of a server."""
    status = Path(f"/proc/{contender.process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0

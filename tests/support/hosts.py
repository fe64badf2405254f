"""Several hosts on one machine: network namespaces on a bridge, each with a Ray node of its own.

Needs root and iproute2. A cable can be pulled and put back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
HEAD = f"{SUBNET}.1:6379"
OUTSIDE = f"{SUBNET}.254"  # this machine, as the hosts see it
START_S = 150.0
RAY = str(Path(sys.executable).with_name("ray"))


def missing() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs `ip` (Debian: iproute2)"
    name = f"aalnet-probe-{os.getpid()}"
    if _run("ip", "netns", "add", name, check=False) != 0:
        return "network namespaces cannot be made here"
    _run("ip", "netns", "del", name)
    return None


@dataclass
class Hosts:
    """Hosts 1, 2, ... at 10.77.0.1, 10.77.0.2, ..."""

    count: int
    folder: Path
    bridge: str = "aalbr0"
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What every process on a host needs: the cluster's token, and which network to use."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "aalnet-tests-" + "0" * 32,
            "GLOO_SOCKET_IFNAME": "eth0",
        }

    def name(self, host: int) -> str:
        return f"aalhost{host}"

    def command(self, host: int, *command: str) -> list[str]:
        """The command as it is run on a host."""
        return ["ip", "netns", "exec", self.name(host), *command]

    def start_ray(self, host: int, environment: dict[str, str]) -> None:
        """A Ray node with one CPU; host 1 is the head.

        One after the other: hosts share /tmp/ray, and of two that start at once one finds no name.
        """
        head = ["--head", "--port=6379", "--include-dashboard=false"]
        where = head if host == 1 else [f"--address={HEAD}"]
        with self._log(host).open("wb") as log:
            process = subprocess.Popen(
                self.command(
                    host, RAY, "start", *where, f"--node-ip-address={SUBNET}.{host}",
                    "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats",
                    "--block",
                ),
                env={**os.environ, **environment, **self.environment},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.nodes[host] = process
        end_s = time.monotonic() + START_S
        while b"Ray runtime started" not in self._log(host).read_bytes():
            if process.poll() is not None or time.monotonic() > end_s:
                told = self._log(host).read_text(encoding="utf-8")
                raise RuntimeError(f"no Ray node on host {host}: {told[-500:]}")
            time.sleep(0.2)

    def _log(self, host: int) -> Path:
        return self.folder / f"ray-{host}.log"

    def kill(self, host: int) -> None:
        """SIGKILL every process of a host."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.name(host)], capture_output=True, text=True, check=False
        )
        for pid in done.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if (node := self.nodes.pop(host, None)) is not None:
            node.wait()

    def pull_cable(self, host: int) -> None:
        _run("ip", "link", "set", f"aalveth{host}", "down")

    def plug_in(self, host: int) -> None:
        _run("ip", "link", "set", f"aalveth{host}", "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Make hosts, and take them away again with all that runs on them."""
    folder = Path(tempfile.mkdtemp(prefix="aalnet-hosts-"))
    made = Hosts(count, folder)
    _take_away(made)  # what a killed run has left
    try:
        _run("ip", "link", "add", made.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", made.bridge)
        _run("ip", "link", "set", made.bridge, "up")
        for host in range(1, count + 1):
            name, inner = made.name(host), f"aalpeer{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"aalveth{host}", "type", "veth", "peer", "name", inner)
            _run("ip", "link", "set", inner, "netns", name)
            _run("ip", "link", "set", f"aalveth{host}", "master", made.bridge, "up")
            _run(*made.command(host, "ip", "link", "set", inner, "name", "eth0"))
            _run(*made.command(host, "ip", "addr", "add", f"{SUBNET}.{host}/24", "dev", "eth0"))
            _run(*made.command(host, "ip", "link", "set", "eth0", "up"))
            _run(*made.command(host, "ip", "link", "set", "lo", "up"))
        yield made
    finally:
        _take_away(made)
        shutil.rmtree(folder, ignore_errors=True)


def _take_away(made: Hosts) -> None:
    for host in range(1, made.count + 1):
        made.kill(host)
    time.sleep(0.5)  # a namespace goes when its last process has
    for host in range(1, made.count + 1):
        _run("ip", "netns", "del", made.name(host), check=False)
    _run("ip", "link", "del", made.bridge, check=False)


def _run(*command: str, check: bool = True) -> int:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.returncode

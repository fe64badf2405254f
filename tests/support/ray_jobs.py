"""`aalnet submit` under way on a cluster of the tests."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.ray_cluster import RayCluster
from tests.support.tiny_runs import aalnet_command


class Submitted:
    """`aalnet submit` under way; its output goes to a file."""

    def __init__(self, cluster: RayCluster, folder: Path, log: Path, *arguments: str) -> None:
        self.cluster, self.log = cluster, log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                aalnet_command("submit", *arguments), cwd=folder, env=cluster.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def told(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    @property
    def job(self) -> str:
        """The submission id."""
        found = re.search(r"^ *job  (\S+)$", self.told, re.MULTILINE)
        assert found, self.told
        return found.group(1)

    def wait_for(self, happened: Callable[[], bool], limit_s: float = 150.0) -> None:
        """Wait until something holds, and fail where the command ends first."""
        end_s = time.monotonic() + limit_s
        while not happened():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < end_s, self.told
            time.sleep(0.2)

    def ends(self, limit_s: float = 150.0) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(limit_s)

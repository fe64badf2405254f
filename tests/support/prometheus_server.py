"""A real Prometheus on loopback, started as a person would: `aalnet monitor up`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_runs import aalnet_command, command_environment


def require_prometheus() -> None:
    """Skip where Debian's prometheus is not installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (Debian: apt-get install prometheus)")


@contextlib.contextmanager
def prometheus_server(cache: Path, scrape_s: float = 1.0) -> Iterator[str]:
    """Its address. It scrapes what processes with AALNET_CACHE=`cache` announce."""
    require_prometheus()
    environment = command_environment() | {"AALNET_CACHE": str(cache)}
    port = _free_port()  # the usual one may be somebody else's
    up = ["monitor", "up", "--detach", "--every-s", str(scrape_s), "--port", str(port)]
    subprocess.run(aalnet_command(*up), env=environment, check=True, capture_output=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run(
            aalnet_command("monitor", "down"), env=environment, check=True, capture_output=True
        )


def query(base: str, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
    """An instant query's series: each `{"metric": labels, "value": [time, text]}`."""
    asked = {"query": expression} | ({} if at_s is None else {"time": str(at_s)})
    url = f"{base}/api/v1/query?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def value(base: str, expression: str) -> float | None:
    """The value of the only series of a query; None where there is none."""
    found = query(base, expression)
    return float(found[0]["value"][1]) if found else None


def wait_for(what: str, found: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What `found` gives, as soon as it is something."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            if result := found():
                return result
        time.sleep(0.25)
    raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")


def announced(cache: Path, beginning: str) -> str | None:
    """The address of what announced itself under an instance of this beginning."""
    for path in (cache / "targets").glob("*.json"):
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        if entry["labels"]["instance"].startswith(beginning):
            return f"http://{entry['targets'][0]}"
    return None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_with(cache: Path) -> dict[str, str]:
    """For a child whose metrics are to be found."""
    return command_environment() | {"AALNET_CACHE": str(cache), "PATH": os.environ["PATH"]}

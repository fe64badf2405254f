"""A real Prometheus on loopback, with the configuration that docs/metrics.md shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiny_runs import command_environment

ROOT = Path(__file__).resolve().parents[2]
METRICS, RUNBOOK = ROOT / "docs/metrics.md", ROOT / "docs/runbook.md"
RULES = ROOT / "deploy/kubernetes/base/monitoring/alert-rules.yaml"
HOME, RULES_FILE = "/home/me/.cache/aalnet", "aalnet.rules.yml"  # as the two pages have them


def require_prometheus() -> None:
    """Skip where Debian's prometheus is not installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (Debian: apt-get install prometheus)")


def rules() -> dict[str, Any]:
    """The alert rules as Prometheus itself reads them: without Kubernetes' wrapping."""
    plain: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
    return plain


def configured(folder: Path, cache: Path, scrape_s: float, alerts: dict[str, Any]) -> Path:
    """The documented `prometheus.yml` in a folder, with these rules beside it.

    It finds what processes with AALNET_CACHE=`cache` announce.
    """
    block = re.search(r"```yaml\n(.*?)```", METRICS.read_text(encoding="utf-8"), re.DOTALL)
    assert block, f"{METRICS.name} shows no prometheus.yml"
    assert HOME in block[1]
    assert f"> {RULES_FILE}" in RUNBOOK.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    text = block[1].replace(HOME, str(cache)).replace("5s,", f"{scrape_s:g}s,")
    (folder / RULES_FILE).write_text(yaml.safe_dump(alerts), encoding="utf-8")
    config = folder / "prometheus.yml"
    config.write_text(text.replace("interval: 5s}\nrule", f"interval: {scrape_s:g}s}}\nrule"))
    return config


@contextlib.contextmanager
def prometheus_server(
    cache: Path, scrape_s: float = 1.0, alerts: dict[str, Any] | None = None
) -> Iterator[str]:
    """Its address. It scrapes what processes with AALNET_CACHE=`cache` announce."""
    require_prometheus()
    folder = cache.parent / "prometheus"
    config = configured(folder, cache, scrape_s, rules() if alerts is None else alerts)
    address = f"127.0.0.1:{_free_port()}"
    command = [
        "prometheus", f"--config.file={config}", f"--web.listen-address={address}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        ready = f"http://{address}/-/ready"
        wait_for("Prometheus", lambda: urllib.request.urlopen(ready, timeout=5).close() or True)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_with(cache: Path) -> dict[str, str]:
    """For a child whose metrics are to be found."""
    return command_environment() | {"AALNET_CACHE": str(cache), "PATH": os.environ["PATH"]}

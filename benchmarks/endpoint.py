"""`python -m benchmarks.endpoint [--quick]`: the endpoint beside the bare model and its rivals.

The demo's networks with fresh weights, since speed does not depend on them. One torch thread each.
Every contender is measured in turns, in rounds; the others are stopped (SIGSTOP) meanwhile. The
load comes from another process (benchmarks/load.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from aalnet.networks import DataSpec
from aalnet.settings import load_settings
from aalnet.state import TrainState
from benchmarks import machine
from benchmarks.table import COLUMNS, Row
from cluster.checkpoint import save
from cluster.runs import Run
from cluster.store import FolderStore

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "endpoint.md"
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
SAMPLES = (1, 8)
SERVE = """
import sys, signal, ray
from ray import serve
from deploy.endpoint.serve_app import build
storage, port = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(port)}, logging_config={"enable_access_log": False})
serve.run(build({"storage": storage, "checkpoint": "demo", "allow_anonymous": "true"}))
signal.sigwait([signal.SIGTERM])
serve.shutdown()
ray.shutdown()
"""
Figures = dict[str, dict[str, list[float]]]  # contender: figure: one value per round


class Contender:
    """A server in a process group of its own."""

    def __init__(self, arguments: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        command = [sys.executable, *(self.port if a == "PORT" else a for a in arguments)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), start_new_session=True, **quiet
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
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
        self.signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def module(name: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT, env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def load(contender: Contender, images: list[str], *arguments: str) -> dict[str, Any]:
    seen = module(
        "benchmarks.load", f"{contender.url}/v1/samples", *images, "--field", "label=objects",
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


def make_run(folder: Path) -> tuple[str, list[str]]:
    """A store with a run of the demo's networks, and condition images as files."""
    table = pq.read_table(ROOT / "data" / "openmoji64" / "test.parquet")
    labels = tuple(sorted(set(table.column("label").to_pylist())))
    settings = load_settings(ROOT / "configs" / "demo.yaml")
    run = Run(FolderStore(folder / "store"), "demo")
    run.claim(settings)
    save(run, TrainState(settings, DataSpec(labels, 1, 3), torch.device("cpu")), {})
    names = []
    for i, row in enumerate(table.slice(0, 64).to_pylist()):
        image = Image.open(io.BytesIO(row["condition"]["bytes"]))
        image.resize((32, 32)).save(folder / f"{i}.png")
        names.append(str(folder / f"{i}.png"))
    return run.store.uri, names


def measure_one(contender: Contender, images: list[str], seconds: str) -> dict[str, float]:
    """Images per second at 8 clients, latencies at 1, for 1 and 8 samples."""
    found: dict[str, float] = {}
    for k in SAMPLES:
        asked = ("--seconds", seconds, "--warm-s", "1", "--field", f"num_samples={k}")
        busy = load(contender, images, "--clients", "8", *asked)
        alone = load(contender, images, "--clients", "1", *asked)
        found[f"images_per_s {k}"] = k * busy["per_s"]
        found[f"p50_ms {k}"] = alone["p50_ms"]["200"]
        found[f"p99_ms {k}"] = alone["p99_ms"]["200"]
    return found


@contextlib.contextmanager
def contenders(commands: dict[str, list[str]]) -> Iterator[dict[str, Contender]]:
    running = {name: Contender(command) for name, command in commands.items()}
    try:
        for each in running.values():
            each.wait()
        yield running
    finally:
        for each in running.values():
            each.end()


def in_turns(store: str, images: list[str], rounds: int, seconds: str) -> Figures:
    """Every contender, round by round."""
    rivals = ["-m", "benchmarks.endpoint_rivals"]
    commands = {
        "endpoint": ["-m", "aalnet", "serve", "demo", "--storage", store, "--port", "PORT"],
        "LitServe": [*rivals, "lit", store, "demo", "PORT"],
        "plain": [*rivals, "plain", store, "demo", "PORT"],
    }
    figures: Figures = {}
    with contenders(commands) as running:
        for name, contender in running.items():  # warm, then stopped
            warm(contender, images)
            contender.signal(signal.SIGSTOP)
            print(f"{name} is up", file=sys.stderr, flush=True)
        for _ in range(rounds):
            bare = module("benchmarks.endpoint_rivals", "bare", store, "demo", seconds)
            keep(figures, "bare", {f"{n} {k}": v for k, f in bare.items() for n, v in f.items()})
            for name, contender in running.items():
                contender.signal(signal.SIGCONT)
                keep(figures, name, measure_one(contender, images, seconds))
                contender.signal(signal.SIGSTOP)
            print(".", end="", file=sys.stderr, flush=True)
    return figures


def beside_ray_serve(store: str, images: list[str], rounds: int, seconds: str) -> Figures:
    """uvicorn and Ray Serve, both while Ray runs."""
    commands = {
        "uvicorn": ["-m", "aalnet", "serve", "demo", "--storage", store, "--port", "PORT"],
        "Ray Serve": ["-c", SERVE, store, "PORT"],
    }
    figures: Figures = {}
    with contenders(commands) as running:
        for contender in running.values():
            warm(contender, images)
        for _ in range(rounds):
            for name, contender in running.items():
                keep(figures, name, measure_one(contender, images, seconds))
    return figures


def overloaded(store: str, images: list[str], seconds: str) -> dict[str, float]:
    """Three times what it can carry, 8 samples a request."""
    command = ["-m", "aalnet", "serve", "demo", "--storage", store, "--port", "PORT"]
    many = ("--field", "num_samples=8")
    with contenders({"endpoint": command}) as running:
        endpoint = running["endpoint"]
        warm(endpoint, images)
        peak = load(endpoint, images, "--clients", "8", "--seconds", "10", *many)
        before_mib = resident_mib(endpoint)
        over = load(endpoint, images, "--rate", str(3 * peak["per_s"]), "--seconds", seconds, *many)
        grown_mib = resident_mib(endpoint) - before_mib
        after = load(endpoint, images, "--clients", "8", "--seconds", "5", *many)
    return {
        "answered": over["per_s"] / peak["per_s"],
        "refused_p50_ms": over["p50_ms"].get("429", 0.0),
        "refused_p99_ms": over["p99_ms"].get("429", 0.0),
        "grown_mib": grown_mib,
        "after": after["per_s"] / peak["per_s"],
    }


def resident_mib(contender: Contender) -> float:
    status = Path(f"/proc/{contender.process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def keep(figures: Figures, name: str, values: dict[str, float]) -> None:
    for figure, value in values.items():
        figures.setdefault(name, {}).setdefault(figure, []).append(value)


def rows_of(turns: Figures, ray: Figures, over: dict[str, float]) -> list[Row]:
    """The table. A ratio is the median over rounds: both sides of a round stood side by side."""

    def ratio(name: str, figure: str, base: str, base_figure: str) -> float:
        pairs = zip(turns[name][figure], turns[base][base_figure], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def over_model(figure: str, k: int) -> float:
        pairs = zip(turns["endpoint"][f"{figure} {k}"], turns["bare"][f"eager_one_ms {k}"],
                    strict=True)  # fmt: skip
        return statistics.median(a - b for a, b in pairs)

    rows = []
    for k in SAMPLES:
        asked, rate = f"{k} sample{'s' * (k > 1)} a request", f"images_per_s {k}"
        loops = (("eager", "eager", 0.9), ("chosen", "the endpoint's execution", None))
        for base, what, bar in loops:
            share = ratio("endpoint", rate, "bare", f"{base}_images_per_s {k}")
            rows.append(
                Row(f"images/s at 8 clients / bare loop, {what}, {asked}", share, "", bar, True)
            )
        for rival in ("LitServe", "plain"):
            share = ratio("endpoint", rate, rival, rate)
            rows.append(Row(f"images/s at 8 clients / {rival}, {asked}", share, "", 1.0, True))
        for percent, bar in (("p50", 3.0), ("p99", 10.0)):
            rows.append(Row(f"{percent} over the model's own time, 1 client, {asked}",
                            over_model(f"{percent}_ms", k), "ms", bar))  # fmt: skip
    for k in SAMPLES:
        for figure, unit in ((f"images_per_s {k}", "images/s"), (f"p50_ms {k}", "ms p50")):
            both = [statistics.median(ray[name][figure]) for name in ("Ray Serve", "uvicorn")]
            rows.append(Row(f"Ray Serve against uvicorn, {unit}, {k} a request",
                            f"{both[0]:.1f} / {both[1]:.1f}"))  # fmt: skip
    return [
        *rows,
        Row("three times its capacity: answered / peak", over["answered"], "", 0.9, True),
        Row("three times its capacity: refused within, p50", over["refused_p50_ms"], "ms", 50),
        Row("three times its capacity: refused within, p99", over["refused_p99_ms"], "ms", 50),
        Row("three times its capacity: memory grows by", over["grown_mib"], "MiB"),
        Row("right afterwards: answered / peak", over["after"], "", 0.9, True),
    ]


def raw_of(figures: Figures) -> list[str]:
    """The medians behind the ratios."""
    return [
        f"- {name}: " + ", ".join(
            f"{figure} {statistics.median(values):.1f}" for figure, values in found.items()
        )
        for name, found in figures.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, print, and write docs/endpoint.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test; nothing is written")
    quick = parser.parse_args().quick
    rounds, seconds = (1, "1") if quick else (3, "2")
    load_before, started_s = machine.load(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        store, images = make_run(Path(name))
        turns = in_turns(store, images, rounds, seconds)
        print("\n".join(raw_of(turns)), file=sys.stderr, flush=True)
        over = overloaded(store, images, "5" if quick else "60")
        print(over, file=sys.stderr, flush=True)
        ray = beside_ray_serve(store, images, 1 if quick else 2, seconds)
    rows = rows_of(turns, ray, over)
    table = "\n".join([COLUMNS, *(f"| endpoint | {' | '.join(row.cells())} |" for row in rows)])
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python -m benchmarks.endpoint` in "
        f"{time.perf_counter() - started_s:.0f} s on {machine.describe()}; load average "
        f"{load_before:.1f} before, {machine.load():.1f} after. Medians over {rounds} rounds:"
    )
    text = "\n".join([table, "", measured, "", *raw_of(turns), *raw_of(ray), ""])
    print(text)
    if not quick:
        before = DOCUMENT.read_text(encoding="utf-8")
        after = FIGURES.sub(lambda found: f"{found[1]}{text}{found[2]}", before)
        DOCUMENT.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()

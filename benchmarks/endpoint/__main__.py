"""`python -m benchmarks.endpoint [--quick] [--only PART]`: the endpoint and what it stands beside.

The demo's networks with fresh weights, since speed does not depend on them. One torch thread each.
The load comes from another process (tests/support/load.py: one thread, epoll, requests made
beforehand) on the same cores. The bare loop has no HTTP beside it and runs batches of 8 conditions,
the most that 8 clients can ask for at once.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from aalnet.networks import DataSpec
from aalnet.settings import load_settings
from aalnet.state import TrainState
from benchmarks.endpoint.contenders import ROOT
from benchmarks.endpoint.parts import (
    SAMPLES,
    Figures,
    beside_ray_serve,
    beside_slow_clients,
    in_turns,
    overloaded,
)
from benchmarks.table import COLUMNS, Row
from cluster.runs.checkpoint import save
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support import machine
from tests.support.load import SLOW_CLIENTS

DOCUMENT = ROOT / "docs" / "endpoint.md"
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
PARTS = ("turns", "overload", "slow", "ray")


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


def rows_of_turns(turns: Figures) -> list[Row]:
    """A ratio is the median over rounds: both sides of a round stood side by side."""

    def ratio(name: str, figure: str, base: str, base_figure: str) -> float:
        pairs = zip(turns[name][figure], turns[base][base_figure], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def over_model(figure: str, k: int) -> float:
        pairs = zip(turns["endpoint"][f"{figure} {k}"], turns["bare"][f"eager_one_ms {k}"],
                    strict=True)  # fmt: skip
        return statistics.median(a - b for a, b in pairs)

    rows = []
    for k in SAMPLES:
        requests, rate = f"{k} sample{'s' * (k > 1)} a request", f"images_per_s {k}"
        loops = (("eager", "as one writes it", 0.9), ("served", "as the endpoint runs it", None))
        for base, what, bar in loops:
            share = ratio("endpoint", rate, "bare", f"{base}_images_per_s {k}")
            rows.append(
                Row(f"images/s at 8 clients / bare loop, {what}, {requests}", share, "", bar, True)
            )
        for rival in ("LitServe", "plain"):
            share = ratio("endpoint", rate, rival, rate)
            rows.append(Row(f"images/s at 8 clients / {rival}, {requests}", share, "", 1.0, True))
        for percent, bar in (("p50", 3.0), ("p99", 10.0)):
            rows.append(Row(f"{percent} over the model's own time, 1 client, {requests}",
                            over_model(f"{percent}_ms", k), "ms", bar))  # fmt: skip
    return rows


def rows_of_overload(over: dict[str, float]) -> list[Row]:
    """Bars of `overloaded`."""
    times = "three times its capacity"
    return [
        Row(f"{times}: answered / peak", over["answered"], "", 0.9, True),
        Row(f"{times}: refused within, p50", over["refused_p50_ms"], "ms", 50),
        Row(f"{times}: refused within, p99", over["refused_p99_ms"], "ms", 50),
        Row(f"{times}: memory grows by", over["grown_mib"], "MiB"),
        Row("right afterwards: answered / peak", over["after"], "", 0.9, True),
    ]


def rows_of_slow(slow: dict[str, float]) -> list[Row]:
    """Bars of `beside_slow_clients`."""
    return [
        Row(f"{percent} beside {SLOW_CLIENTS} slow clients / alone",
            slow[f"{percent}_ms beside"] / slow[f"{percent}_ms alone"], "", 2)
        for percent in ("p50", "p99")
    ]  # fmt: skip


def rows_of_ray(ray: Figures) -> list[Row]:
    """Both hosts side by side, without a bar."""
    rows = []
    for k in SAMPLES:
        for figure, unit in ((f"images_per_s {k}", "images/s"), (f"p50_ms {k}", "ms p50")):
            both = [statistics.median(ray[name][figure]) for name in ("Ray Serve", "uvicorn")]
            rows.append(Row(f"Ray Serve against uvicorn, {unit}, {k} a request",
                            f"{both[0]:.1f} / {both[1]:.1f}"))  # fmt: skip
    return rows


def raw_of(figures: Figures) -> list[str]:
    """The medians behind the ratios."""
    return [
        f"- {name}: " + ", ".join(
            f"{figure} {statistics.median(values):.1f}" for figure, values in medians.items()
        )
        for name, medians in figures.items()
    ]  # fmt: skip


def measure(parts: list[str], *, quick: bool) -> tuple[list[Row], list[str]]:
    """The rows of the table, and the medians behind them."""
    rounds, seconds = (1, "1") if quick else (3, "2")
    rows: list[Row] = []
    raw: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        store, images = make_run(Path(name))
        if "turns" in parts:
            turns = in_turns(store, images, rounds, seconds)
            rows += rows_of_turns(turns)
            raw += raw_of(turns)
        if "overload" in parts:
            rows += rows_of_overload(overloaded(store, images, "5" if quick else "60"))
        if "slow" in parts:
            slow = beside_slow_clients(store, images)
            rows += rows_of_slow(slow)
            raw.append("- slow clients: " + ", ".join(f"{k} {v:.1f}" for k, v in slow.items()))
        if "ray" in parts:
            ray = beside_ray_serve(store, images, 1, seconds)
            rows += rows_of_ray(ray)
            raw += raw_of(ray)
    return rows, raw


def main() -> None:
    """Measure, print, and (a whole run) write docs/endpoint.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test; nothing is written")
    parser.add_argument("--only", action="append", choices=PARTS, help="nothing is written")
    options = parser.parse_args()
    load_before, started_s = machine.load(), time.perf_counter()
    rows, raw = measure(options.only or list(PARTS), quick=options.quick)
    table = "\n".join([COLUMNS, *(f"| endpoint | {' | '.join(row.cells())} |" for row in rows)])
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python -m benchmarks.endpoint` in "
        f"{time.perf_counter() - started_s:.0f} s on {machine.describe()}; load average "
        f"{load_before:.1f} before, {machine.load():.1f} after. Medians over the rounds:"
    )
    text = "\n".join([table, "", measured, "", *raw, ""])
    print(text)
    if options.quick or options.only:
        print("docs/endpoint.md stays as it was: this was not the whole run", file=sys.stderr)
        return
    before = DOCUMENT.read_text(encoding="utf-8")
    after = FIGURES.sub(lambda match: f"{match[1]}{text}{match[2]}", before)
    DOCUMENT.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()

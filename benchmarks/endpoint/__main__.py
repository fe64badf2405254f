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
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from aalnet.networks import DataSpec
from aalnet.settings import load_settings
from aalnet.state import TrainState
from benchmarks.endpoint.parts import overload, ray, slow, turns
from benchmarks.endpoint.servers import ROOT
from benchmarks.table import COLUMNS, Result, measured, table
from cluster.runs.checkpoint import save
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore

DOCUMENT = ROOT / "docs" / "endpoint.md"
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
PARTS = {"turns": turns, "overload": overload, "slow": slow, "ray": ray}


def make_run(folder: Path) -> tuple[str, list[str]]:
    """A store with a run of the demo's networks, and condition images as files."""
    test = pq.read_table(ROOT / "data" / "openmoji64" / "test.parquet")
    labels = tuple(sorted(set(test.column("label").to_pylist())))
    settings = load_settings(ROOT / "configs" / "demo.yaml")
    run = Run(FolderStore(folder / "store"), "demo")
    run.claim(settings)
    save(run, TrainState(settings, DataSpec(labels, 1, 3), torch.device("cpu")), {})
    names = []
    for i, row in enumerate(test.slice(0, 64).to_pylist()):
        image = Image.open(io.BytesIO(row["condition"]["bytes"]))
        image.resize((32, 32)).save(folder / f"{i}.png")
        names.append(str(folder / f"{i}.png"))
    return run.store.uri, names


def measure(parts: list[str], *, quick: bool) -> Result:
    """The rows of the table, and the medians behind them."""
    with tempfile.TemporaryDirectory() as folder:
        store, images = make_run(Path(folder))
        results = [part(store, images, quick) for name, part in PARTS.items() if name in parts]
    return Result(
        [row for r in results for row in r.rows], [line for r in results for line in r.raw]
    )


def main() -> None:
    """Measure, print, and (a whole run) write docs/endpoint.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test; nothing is written")
    parser.add_argument("--only", action="append", choices=PARTS, help="nothing is written")
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    result, machine = measured("benchmarks.endpoint", lambda: measure(parts, quick=options.quick))
    lines = [
        COLUMNS,
        *table("endpoint", result.rows),
        "",
        f"{machine} Medians over the rounds:",
        "",
    ]
    text = "\n".join([*lines, *(f"- {line}" for line in result.raw), ""])
    print(text)
    if options.quick or options.only:
        print("docs/endpoint.md stays as it was: this was not the whole run", file=sys.stderr)
        return
    before = DOCUMENT.read_text(encoding="utf-8")
    after = FIGURES.sub(lambda match: f"{match[1]}{text}{match[2]}", before)
    DOCUMENT.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()

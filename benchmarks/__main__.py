"""`python -m benchmarks [NAME...] [--quick]`: measure, print a table, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.table import Section, merged
from tests.support import machine

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
MODULES = {  # name: its module; the order of the table
    "penalties": "penalties",
    "samples": "samples",
    "data": "data",
    "pack": "pack",
    "ray": "ray_train",
    "checkpoint": "checkpoint",
    "uploads": "uploads",
    "telemetry": "telemetry",
    "campaign": "campaign",
    "precision": "precision",
    "methods": "methods",
}


def main() -> None:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test; nothing is written")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in MODULES]
    if unknown:
        parser.error(f"`{unknown[0]}` is not a benchmark; there are {', '.join(MODULES)}")
    os.chdir(ROOT)  # the demo's data paths
    import torch

    torch.set_num_threads(1)
    found: list[Section] = []
    for name in asked.names or MODULES:
        found.append(run(name, quick=asked.quick))
        if not asked.quick:
            before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
            DOCUMENT.parent.mkdir(exist_ok=True)
            DOCUMENT.write_text(merged(before, found[-1:], MODULES), encoding="utf-8")
    show(found)


def run(name: str, *, quick: bool) -> Section:
    """One benchmark, with what it was measured on."""
    print(f"{name} ... ", end="", file=sys.stderr, flush=True)
    module = import_module(f"benchmarks.speed.{MODULES[name]}")
    load_before, started_s = machine.load(), time.perf_counter()
    result = module.measure(quick)
    took_s = time.perf_counter() - started_s
    print(f"{took_s:.0f} s", file=sys.stderr, flush=True)
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python -m benchmarks {name}` in "
        f"{took_s:.0f} s on {machine.describe()}; load average {load_before:.1f} before, "
        f"{machine.load():.1f} after."
    )
    return Section(name, module.__doc__ or "", result, measured)


def show(sections: list[Section]) -> None:
    """The table on the terminal, and which bars were missed."""
    cells = [(s.name, *row.cells()) for s in sections for row in s.result.rows]
    cells.insert(0, ("benchmark", "what", "figure", "bar", "met"))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    verdicts = [row.verdict for s in sections for row in s.result.rows if row.bar is not None]
    met = verdicts.count("yes")
    print(f"bars: {met} met, {len(verdicts) - met} not met")


if __name__ == "__main__":
    main()

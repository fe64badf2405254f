"""`python -m benchmarks [NAME...] [--quick]`: measure, print a table, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.table import Section, measured, merged

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
MODULES = {  # a benchmark, which is a function: its module; the order of the table
    "penalties": "steps",
    "samples": "steps",
    "data": "data",
    "pack": "data",
    "ray": "loops",
    "checkpoint": "checkpoint",
    "telemetry": "telemetry",
    "campaign": "campaign",
    "precision": "steps",
    "methods": "steps",
}


def main() -> None:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test; nothing is written")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MODULES]
    if unknown:
        parser.error(f"`{unknown[0]}` is not a benchmark; there are {', '.join(MODULES)}")
    os.chdir(ROOT)  # the demo's data paths
    torch.set_num_threads(1)
    sections: list[Section] = []
    for name in options.names or MODULES:
        sections.append(run(name, quick=options.quick))
        if not options.quick:
            before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
            DOCUMENT.write_text(merged(before, sections[-1], MODULES), encoding="utf-8")
    show(sections)


def run(name: str, *, quick: bool) -> Section:
    """One benchmark; the docstring of its function says how it measures."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    measure = getattr(import_module(f"benchmarks.speed.{MODULES[name]}"), name)
    result, machine = measured(f"benchmarks {name}", lambda: measure(quick))
    return Section(name, inspect.getdoc(measure) or "", result, machine)


def show(sections: list[Section]) -> None:
    """The table on the terminal, and how many bars were met."""
    cells = [(s.name, *row.cells()) for s in sections for row in s.result.rows]
    cells.insert(0, ("benchmark", "what", "figure", "bar", "met"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    verdicts = [row.verdict for s in sections for row in s.result.rows if row.bar is not None]
    met = verdicts.count("yes")
    print(f"bars: {met} met, {len(verdicts) - met} not met")


if __name__ == "__main__":
    main()

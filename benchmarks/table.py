"""Rows of figures, and docs/benchmarks.md, which keeps them until a benchmark runs again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tests.support import machine

HEADER = """\
# Benchmarks

Written by `make bench` (`python -m benchmarks [NAME...]`); a run replaces the rows and the section
of the benchmarks it ran and keeps the others. Machines are noisy, so every bar is on a ratio of
things measured side by side, in turns. Each section names the machine, the load and the command.
"""
COLUMNS = "| benchmark | what | figure | bar | met |\n|---|---|---:|---|---|"
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One figure. With a bar it is met when at most the bar, or at least it with `at_least`."""

    what: str
    figure: float | str
    unit: str = ""
    bar: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """What stands in the last column. The figures are judged, not their rounding."""
        if self.bar is None or isinstance(self.figure, str):
            return ""
        met = self.figure >= self.bar if self.at_least else self.figure <= self.bar
        return "yes" if met else "**no**"

    def cells(self) -> tuple[str, str, str, str]:
        """what, figure, bar, met, as they are shown."""
        figure = self.figure if isinstance(self.figure, str) else _number(self.figure)
        bar = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        unit = f" {self.unit}" if self.unit else ""
        return self.what, figure + unit, bar + unit if bar else "", self.verdict


@dataclass(frozen=True)
class Result:
    """Figures of one benchmark, and the medians behind them in words."""

    rows: list[Row]
    raw: list[str]


@dataclass(frozen=True)
class Section:
    """One benchmark's result, how it was measured and on what."""

    name: str
    method: str
    result: Result
    measured: str

    def text(self) -> str:
        """Its part of the document."""
        raw = "\n".join(f"- {line}" for line in self.result.raw)
        return f"## {self.name}\n\n{self.method}\n\n{self.measured}\n\n{raw}\n"


def measured(command: str, measure: Callable[[], T]) -> tuple[T, str]:
    """The answer of `measure`, and a sentence: when, by which command, how long, on what."""
    load_before, started_s = machine.load(), time.perf_counter()
    answer = measure()
    return answer, (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python -m {command}` in "
        f"{time.perf_counter() - started_s:.0f} s on {machine.describe()}; load average "
        f"{load_before:.1f} before, {machine.load():.1f} after."
    )


def table(name: str, rows: Iterable[Row]) -> list[str]:
    """The lines of a benchmark in the table, below COLUMNS."""
    return [f"| {name} | {' | '.join(row.cells())} |" for row in rows]


def merged(before: str, section: Section, order: Iterable[str]) -> str:
    """The document `before` with this section put in or replaced; the rest is kept."""
    head, *parts = re.split(r"^## ", before, flags=re.MULTILINE)
    texts = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
    tables = {
        name: [line for line in head.splitlines() if line.startswith(f"| {name} |")]
        for name in texts
    }
    texts[section.name] = section.text()
    tables[section.name] = table(section.name, section.result.rows)
    names = [name for name in order if name in texts]
    lines = [COLUMNS, *(line for name in names for line in tables[name])]
    return "\n".join([HEADER, *lines, "", *(texts[name] for name in names)])


def _number(figure: float) -> str:
    """Three significant digits, four above 1, never in powers of ten."""
    if float(figure).is_integer():
        return f"{figure:.0f}"
    digits = 3 if abs(figure) < 10 else 1
    return f"{figure:.{digits}f}" if abs(figure) >= 0.01 else f"{figure:.2g}"

"""Rows of figures, and docs/benchmarks.md, which keeps them until a benchmark runs again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = """\
# Benchmarks

Written by `make bench` (`python -m benchmarks [NAME...]`); a run replaces the rows and the section
of the benchmarks it ran and keeps the others. Machines are noisy, so every bar is on a ratio of
things measured side by side, in turns. Each section names the machine, the load and the command.
"""
COLUMNS = "| benchmark | what | figure | bar | met |\n|---|---|---:|---|---|"


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
    """What one benchmark found."""

    rows: list[Row]
    raw: list[str]  # the medians behind the figures, in words


@dataclass(frozen=True)
class Section:
    """One benchmark's result, how it was measured and on what."""

    name: str
    method: str
    result: Result
    measured: str

    def table(self) -> list[str]:
        """Its lines of the table."""
        return [f"| {self.name} | {' | '.join(row.cells())} |" for row in self.result.rows]

    def text(self) -> str:
        """Its part of the document."""
        raw = "\n".join(f"- {line}" for line in self.result.raw)
        return f"## {self.name}\n\n{self.method.strip()}\n\n{self.measured}\n\n{raw}\n"


def merged(before: str, sections: Iterable[Section], order: Iterable[str]) -> str:
    """The document `before` with these sections put in or replaced; the rest is kept."""
    tables, texts = _parsed(before)
    for section in sections:
        tables[section.name] = section.table()
        texts[section.name] = section.text()
    names = [name for name in order if name in texts]
    table = "\n".join([COLUMNS, *(line for name in names for line in tables[name])])
    return "\n".join([HEADER, table, "", *(texts[name] for name in names)])


def _parsed(document: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Lines of the table and section texts, by the benchmark's name."""
    head, *parts = re.split(r"^## ", document, flags=re.MULTILINE)
    texts = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
    tables: dict[str, list[str]] = {name: [] for name in texts}
    for line in head.splitlines():
        name = line.split("|")[1].strip() if line.startswith("|") else ""
        if name in tables:
            tables[name].append(line)
    return tables, texts


def _number(figure: float) -> str:
    """Three significant digits, four above 1, never in powers of ten."""
    if float(figure).is_integer():
        return f"{figure:.0f}"
    digits = 3 if abs(figure) < 10 else 1
    return f"{figure:.{digits}f}" if abs(figure) >= 0.01 else f"{figure:.2g}"

"""A run's or a campaign's metrics on a terminal: the last values, and how they came there."""

from __future__ import annotations

import math
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.view.progress import printable
from cluster.view.scrape import Sample

BARS = "▁▂▃▄▅▆▇█"
WIDE = 116  # columns from which on two things stand side by side
LINE = 16  # width of a sparkline
KEPT = 240  # points of a line; older ones go
REFRESH_PER_S = 2.0
Labels = tuple[tuple[str, str], ...]
Line = tuple[str, str, str, str]  # a name, a value, a sparkline and a note
GAP: Line = ("", "", "", "")
Figures = Mapping[tuple[str, Labels], float]  # by metric and its labels, without run and worker


@dataclass
class History:
    """The last values of every metric, each with the points before it."""

    now: dict[tuple[str, Labels], float] = field(default_factory=dict)
    past: dict[tuple[str, Labels], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=KEPT))
    )

    def add(self, figures: Figures) -> None:
        """Take in the values of now; a metric gets a point where its value has changed."""
        for key, value in figures.items():
            if math.isfinite(value) and self.now.get(key) != value:
                self.past[key].append(value)
            self.now[key] = value

    def get(self, name: str, **labels: str) -> float | None:
        """The value now; None where there is none."""
        return self.now.get((name, tuple(sorted(labels.items()))))

    def line(self, name: str, width: int, **labels: str) -> str:
        """A sparkline of the points there were."""
        return sparkline(self.past.get((name, tuple(sorted(labels.items()))), ()), width)

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one of its labels."""
        return {
            dict(labels)[label]: value
            for (found, labels), value in self.now.items()
            if found == name and label in dict(labels)
        }


class Screen:
    """A page that is drawn again and again, while it is entered, from the figures it takes."""

    def __init__(self, status: str, console: Console | None) -> None:
        self.history, self.status = History(), status
        self.console = console or Console(file=sys.stdout, highlight=False)
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = Live(
            get_renderable=self.page, console=self.console, refresh_per_second=REFRESH_PER_S
        )
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def take(self, samples: Iterable[Sample], status: str) -> None:
        """Take in the values of now."""
        with self._lock:
            self.status = status
            self.history.add(figures_of(samples))

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        raise NotImplementedError


def figures_of(samples: Iterable[Sample]) -> Figures:
    """Samples as a history takes them: those of several workers are added up."""
    found: dict[tuple[str, Labels], float] = defaultdict(float)
    for name, labels, value in samples:
        kept = {k: v for k, v in labels.items() if k not in {"run", "campaign", "worker"}}
        found[name, tuple(sorted(kept.items()))] += value
    return found


def sparkline(values: Sequence[float] | deque[float], width: int) -> str:
    """Values as a line of bars; where there are more than fit, each bar is a mean of several."""
    points = list(values)
    if len(points) > width:
        share = len(points) / width
        cuts = [points[int(i * share) : max(int((i + 1) * share), int(i * share) + 1)]
                for i in range(width)]  # fmt: skip
        points = [sum(cut) / len(cut) for cut in cuts]
    if not points:
        return ""
    low, high = min(points), max(points)
    if high == low:
        return BARS[0] * len(points)
    shares = ((point / 2 - low / 2) / (high / 2 - low / 2) for point in points)  # no overflow
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in shares)


def page(title: str, status: str, parts: Sequence[RenderableType]) -> RenderableType:
    """A titled page of parts."""
    head = Text.assemble((printable(title), "bold"), "  ", (status, COLOURS.get(status, "yellow")))
    return Panel(Group(*parts), title=head, title_align="left", border_style="dim")


def rows(lines: Iterable[Line]) -> Table:
    """A table of names, values, sparklines and notes."""
    lines = list(lines)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=9)
    table.add_column(style="cyan", no_wrap=True)
    if noted := any(note for *_, note in lines):
        table.add_column(style="dim", no_wrap=True)
    for name, value, line, note in lines:
        notes = [printable(note)] if noted else []
        table.add_row(printable(name), printable(value), line, *notes)
    return table


COLOURS = {"finished": "green", "running": "blue", "complete": "green", "failed": "red"}

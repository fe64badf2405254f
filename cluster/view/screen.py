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

from prometheus_client.core import Metric
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.view.progress import printable

BARS = "▁▂▃▄▅▆▇█"
WIDE = 116  # columns from which on two things stand side by side
SPARKLINE = 16  # width of one
POINTS = 240  # of a sparkline; older ones go
REFRESH_PER_S = 2.0
Series = tuple[str, tuple[tuple[str, str], ...]]  # a metric and its labels, but for OWNER
OWNER = {"run", "campaign", "worker"}
Row = tuple[str, str, str, str]  # a name, a value, a sparkline and a note
BLANK: Row = ("", "", "", "")
COLOURS = {"finished": "green", "running": "blue", "complete": "green", "failed": "red"}


@dataclass
class History:
    """The last values of every series, each with the points before it."""

    now: dict[Series, float] = field(default_factory=dict)
    past: dict[Series, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=POINTS))
    )

    def add(self, values: Mapping[Series, float]) -> None:
        """Take in the values of now; a series gets a point where its value has changed."""
        for series, value in values.items():
            if math.isfinite(value) and self.now.get(series) != value:
                self.past[series].append(value)
            self.now[series] = value

    def get(self, name: str, **labels: str) -> float | None:
        """The value now; None where there is none."""
        return self.now.get((name, tuple(sorted(labels.items()))))

    def sparkline(self, name: str, **labels: str) -> str:
        """A sparkline of the points there were."""
        return sparkline(self.past.get((name, tuple(sorted(labels.items()))), ()), SPARKLINE)

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one of its labels."""
        return {
            dict(labels)[label]: value
            for (metric, labels), value in self.now.items()
            if metric == name and label in dict(labels)
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

    def take(self, values: Mapping[Series, float], status: str) -> None:
        """Take in the values of now."""
        with self._lock:
            self.status = status
            self.history.add(values)

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        raise NotImplementedError


def values_of(families: Iterable[Metric]) -> dict[Series, float]:
    """The values of metrics as a history takes them; a histogram's are its sum and count."""
    values = {}
    for sample in (sample for family in families for sample in family.samples):
        if "le" not in sample.labels:
            labels = (item for item in sample.labels.items() if item[0] not in OWNER)
            values[sample.name, tuple(sorted(labels))] = sample.value
    return values


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


def bar(share: float) -> Text:
    """How much of something is done, from 0 to 1."""
    full = round(share * SPARKLINE)
    return Text.assemble(("━" * full, "green"), ("━" * (SPARKLINE - full), "dim"))


def table(rows: Sequence[Row]) -> Table:
    """Names, values, sparklines and notes."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, min_width=9)
    grid.add_column(style="cyan", no_wrap=True)
    if noted := any(note for *_, note in rows):
        grid.add_column(style="dim", no_wrap=True)
    for name, value, line, note in rows:
        notes = [printable(note)] if noted else []
        grid.add_row(printable(name), printable(value), line, *notes)
    return grid

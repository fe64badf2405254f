"""Reads a dashboard's JSON as Grafana does: panels, queries, and what variables stand for."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes/base/monitoring/dashboards"
PATHS = sorted(FOLDER.glob("*.json"))
VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")
BUILT_IN = {"__rate_interval", "__range", "__interval"}
POINTS = 200  # of a panel, across
SCRAPE_S = 15  # what Grafana takes a Prometheus to have, unless told
Board = dict[str, Any]
Series = list[dict[str, Any]]


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    panel: str
    expr: str
    legend: str
    instant: bool


@dataclass(frozen=True)
class Window:
    """The time that a dashboard looks at, in seconds."""

    start_s: float
    end_s: float

    @property
    def step_s(self) -> float:
        """Seconds between two points of a panel."""
        return max((self.end_s - self.start_s) / POINTS, 1.0)

    def values(self) -> dict[str, str]:
        """What Grafana's own variables stand for."""
        rate_s = max(self.step_s + SCRAPE_S, 4 * SCRAPE_S)
        return {
            "__interval": f"{self.step_s:.0f}s",
            "__rate_interval": f"{rate_s:.0f}s",
            "__range": f"{self.end_s - self.start_s:.0f}s",
        }


def load(path: Path) -> Board:
    """The dashboard in a file."""
    board: Board = json.loads(path.read_text(encoding="utf-8"))
    return board


def panels(board: Board) -> Iterator[dict[str, Any]]:
    """Every panel that shows something, those in rows too."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(board: Board) -> Iterator[PanelQuery]:
    """Every query of every panel."""
    for panel in panels(board):
        for target in panel["targets"]:
            instant = bool(target.get("instant"))
            yield PanelQuery(panel["title"], target["expr"], target["legendFormat"], instant)


def variables(board: Board) -> dict[str, dict[str, Any]]:
    """The variables that are queries, by name."""
    return {item["name"]: item for item in board["templating"]["list"] if item["type"] == "query"}


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced; a KeyError names one that nobody knows."""
    return VARIABLE.sub(lambda name: values[name[1] or name[2]], text)


def choices(base: str, variable: dict[str, Any], window: Window) -> list[str]:
    """What a variable of a query may be, as Grafana finds it: a regex over the series' text."""
    query = re.fullmatch(r"query_result\((.*)\)", variable["query"]["query"])
    assert query, "only query_result is read here"
    pattern = re.compile(variable["regex"].strip("/"))
    texts = [
        "{" + ",".join(f'{name}="{text}"' for name, text in series["metric"].items()) + "} 1"
        for series in instant(base, filled(query[1], window.values()), window.end_s)
    ]
    return sorted({match[1] for text in texts if (match := pattern.search(text))})


def answer(base: str, query: PanelQuery, values: Mapping[str, str], window: Window) -> Series:
    """The series that a query gives."""
    expr = filled(query.expr, {**values, **window.values()})
    if query.instant:
        return instant(base, expr, window.end_s)
    return over(base, expr, window)


def instant(base: str, expr: str, at_s: float) -> Series:
    """The series of an expression at a moment."""
    return _get(base, "query", query=expr, time=f"{at_s:.3f}")


def over(base: str, expr: str, window: Window) -> Series:
    """The series of an expression over a window, at POINTS moments."""
    return _get(
        base, "query_range", query=expr, start=f"{window.start_s:.3f}", end=f"{window.end_s:.3f}",
        step=f"{window.step_s:.3f}",
    )  # fmt: skip


def _get(base: str, path: str, **parameters: str) -> Series:
    url = f"{base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=60) as response:
        series: Series = json.load(response)["data"]["result"]
    return series

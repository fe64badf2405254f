"""`python -m benchmarks.dashboard_pictures URL --run R --campaign C`: the dashboards as pictures.

Each panel's queries are asked of the Prometheus at URL, as Grafana would, and drawn by matplotlib
where the panel lies: docs/pictures/dashboard-*.png. Grafana itself draws them nicer.
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from tests.support.grafana import (
    PATHS,
    PanelQuery,
    Series,
    Window,
    answer,
    choices,
    load,
    panels,
    variables,
)

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
WIDTH_IN, UNIT_IN = 19.0, 0.36  # of a dashboard, and of a unit of its height
COLORS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2",
          "purple": "#b877d9", "gray": "#9e9e9e", "text": "#d8d9da"}  # fmt: skip
BACK, FRONT, TEXT = "#111217", "#181b1f", "#d8d9da"
STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
PALETTE = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d",
           "#ffa6b0", "#ca95e5")  # fmt: skip


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--run", required=True)
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    asked = parser.parse_args()
    now_s = time.time()
    window = Window(now_s - 60 * asked.minutes, now_s)
    style = {"axes.facecolor": FRONT, "text.color": TEXT, "axes.edgecolor": "#333",
             "xtick.color": "#999", "ytick.color": "#999", "font.size": 8,
             "grid.color": "#2c3235"}  # fmt: skip
    for path in PATHS:
        board = load(path)
        values = {name: (choices(asked.url, variable, window) or [""])[0]
                  for name, variable in variables(board).items()}  # fmt: skip
        values |= {"run": asked.run, "campaign": asked.campaign}
        with mpl.rc_context(style):
            draw(board, asked.url, values, window, PICTURES / f"dashboard-{path.stem}.png")
        print(path.stem, flush=True)


def draw(
    board: dict[str, Any], url: str, values: Mapping[str, str], window: Window, path: Path
) -> None:
    """One dashboard: rows are lines of text, panels are drawn in their places."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(WIDTH_IN, (height + 1.5) * UNIT_IN), facecolor=BACK)

    def place(spot: Mapping[str, int], *, inner: bool) -> tuple[float, float, float, float]:
        whole = height + 1.5
        left, bottom = spot["x"] / 24, 1 - (spot["y"] + 1.5 + spot["h"]) / whole
        width, tall = spot["w"] / 24, spot["h"] / whole
        if not inner:
            return left + 0.002, bottom + 0.08 / whole, width - 0.004, tall - 0.16 / whole
        return left + 0.026, bottom + 0.75 / whole, width - 0.036, tall - 1.95 / whole

    shown = ", ".join(f"{key} {values[key]}" for key in variables(board))
    figure.text(0.004, 1 - 0.8 / (height + 1.5), f"{board['title']}   {shown}", fontsize=13)
    for row in (panel for panel in board["panels"] if panel["type"] == "row"):
        at = 1 - (row["gridPos"]["y"] + 2.2) / (height + 1.5)
        figure.text(0.004, at, row["title"], fontsize=10, weight="bold")
    for panel in panels(board):
        spot = panel["gridPos"]
        frame = figure.add_axes(place(spot, inner=False))
        frame.set(xticks=[], yticks=[])
        frame.set_title(panel["title"], fontsize=8, loc="left", y=1.0, pad=-11, x=0.01)
        found = [
            (name_of(query, series), series)
            for query in asked_of(panel)
            for series in answer(url, query, values, window)
        ]
        kinds = {"timeseries": lines, "stat": number, "state-timeline": bars}
        if panel["type"] == "table":
            table(frame, panel, url, values, window)
        elif panel["type"] == "stat":
            number(frame, panel, found)
        else:
            inner = figure.add_axes(place(spot, inner=True))
            kinds[panel["type"]](inner, panel, found)
            inner.set_xlim(*(datetime.fromtimestamp(at, UTC) for at in
                             (window.start_s, window.end_s)))  # fmt: skip
    figure.savefig(path, dpi=70, facecolor=BACK)
    plt.close(figure)


def asked_of(panel: dict[str, Any]) -> list[PanelQuery]:
    return [
        PanelQuery(
            panel["title"], target["expr"], target["legendFormat"], bool(target.get("instant"))
        )
        for target in panel["targets"]
    ]


def name_of(asked: PanelQuery, series: dict[str, Any]) -> str:
    """What Grafana calls a series."""
    labels: dict[str, str] = series["metric"]
    if asked.legend == "__auto":
        return ", ".join(labels.values())
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), asked.legend).strip()


def lines(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]]) -> None:
    """Lines, or areas one above the other."""
    custom = panel["fieldConfig"]["defaults"]["custom"]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    base: dict[float, float] = {}
    for index, (name, series) in enumerate(found):
        color = PALETTE[index % len(PALETTE)]
        times = [float(at) for at, _ in series["values"]]
        heights = [float(value) for _, value in series["values"]]
        below = [base.get(at, 0.0) if stacked else 0.0 for at in times]
        tops = [a + b for a, b in zip(heights, below, strict=True)]
        base |= dict(zip(times, tops, strict=True))
        when = [datetime.fromtimestamp(at, UTC) for at in times]
        axes.plot(when, tops, color=color, lw=1.1, label=name or panel["title"],
                  marker="." if len(when) < 3 else None)  # fmt: skip
        if stacked:
            axes.fill_between(when, below, tops, color=color, alpha=0.4, lw=0)
    scale = custom.get("scaleDistribution", {}).get("type")
    if scale == "log":
        axes.set_yscale("log")
    elif "axisSoftMin" in custom:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, custom["axisSoftMin"]),
                      max(high, custom.get("axisSoftMax", high)))  # fmt: skip
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]:
            if axes.get_ylim()[0] <= step["value"] <= axes.get_ylim()[1]:
                axes.axhline(step["value"], color=COLORS[step["color"]], ls="--", lw=0.8)
    shown, hidden = FuncFormatter(lambda value, _: written(value, unit)), NullFormatter()
    low, high = axes.get_ylim()
    within_a_decade = scale == "log" and high < 10 * low  # then it may have minor ticks only
    axes.yaxis.set_major_formatter(shown)
    axes.yaxis.set_minor_formatter(shown if within_a_decade else hidden)
    if scale != "log" and "axisSoftMax" not in custom:
        axes.set_ylim(low, high + 0.25 * (high - low))  # for the legend
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
    axes.grid(visible=True, lw=0.5)
    axes.tick_params(labelsize=6.5, length=0)
    if found:
        axes.legend(loc="upper left", fontsize=6, ncols=3, framealpha=0.5, facecolor=FRONT,
                    edgecolor="none", labelcolor=TEXT)  # fmt: skip


def number(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]]) -> None:
    """The last values, in the colours of their thresholds."""
    defaults = panel["fieldConfig"]["defaults"]
    for index, (name, series) in enumerate(found[:3]):
        value = float(series["values"][-1][1])
        text, color = mapped(defaults, value)
        at = (index + 0.5) / min(len(found), 3)
        axes.text(at, 0.45, text or written(value, defaults["unit"], defaults.get("decimals")),
                  color=color, fontsize=15 if len(found) < 3 else 11, ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip
        if len(found) > 1 or "{{" in panel["targets"][0]["legendFormat"]:
            axes.text(at, 0.12, textwrap.shorten(name, 34), fontsize=6.5, ha="center",
                      transform=axes.transAxes)  # fmt: skip


def bars(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]]) -> None:
    """A bar for each series, coloured by what its value means."""
    for index, (_, series) in enumerate(found):
        points = [(float(at), float(value)) for at, value in series["values"]]
        for (at, value), (until, _) in pairwise(points):
            _, color = mapped(panel["fieldConfig"]["defaults"], value)
            start = datetime.fromtimestamp(at, UTC)
            axes.barh(index, datetime.fromtimestamp(until, UTC) - start, left=start, color=color)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=6.5, length=0)
    for index, (text, color) in enumerate(legend_of(panel)):
        axes.text(0.02 + index * 0.13, 1.03, text, color=color, fontsize=7,
                  transform=axes.transAxes)  # fmt: skip


def legend_of(panel: dict[str, Any]) -> list[tuple[str, str]]:
    options = panel["fieldConfig"]["defaults"]["mappings"][0]["options"].values()
    return [(option["text"], COLORS[option["color"]]) for option in options]


def table(
    axes: Axes, panel: dict[str, Any], url: str, values: Mapping[str, str], window: Window
) -> None:
    """Rows by the label that all queries share."""
    organize = panel["transformations"][1]["options"]
    key = next(name for name, place in organize["indexByName"].items() if place == 0)
    titles = [key, *organize["renameByName"].values()]
    looks = {item["matcher"]["options"]: {one["id"]: one["value"] for one in item["properties"]}
             for item in panel["fieldConfig"]["overrides"]}  # fmt: skip
    cells: dict[str, dict[str, float]] = {}
    for query, title in zip(asked_of(panel), titles[1:], strict=True):
        series: Series = answer(url, query, values, window)
        for one in series:
            cells.setdefault(one["metric"].get(key, ""), {})[title] = float(one["value"][1])
    for column, title in enumerate(titles):
        at = (column + 0.05) / len(titles)
        axes.text(at, 0.83, title, fontsize=7.5, color="#6e9fff", transform=axes.transAxes)
        for line, (name, row) in enumerate(sorted(cells.items())[:8]):
            look = looks.get(title, {})
            text, color = name, "#6e9fff"
            if title != key and title not in row:
                continue
            if title != key:
                told, color = mapped(look, row[title])
                text = told or written(row[title], look["unit"])
            axes.text(at, 0.72 - 0.1 * line, text, fontsize=8, color=color,
                      transform=axes.transAxes)  # fmt: skip


def mapped(look: Mapping[str, Any], value: float) -> tuple[str, str]:
    """The text that stands for a value, empty where none does, and its colour."""
    for mapping in look.get("mappings", []):
        if option := mapping["options"].get(f"{value:g}"):
            return option["text"], COLORS[option["color"]]
    color = TEXT
    for step in look.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            color = COLORS[step["color"]]
    return "", color


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value in its unit, as Grafana writes it or nearly so."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f} %"
    if unit == "s":
        for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    tail = {"reqps": " req/s", "ops": " /s", "Bps": " B/s", "bytes": " B", "dB": " dB"}
    for size, letter in STEPS:
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{tail.get(unit, '')}"
    digits = f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"
    return digits + tail.get(unit, "")


if __name__ == "__main__":
    main()

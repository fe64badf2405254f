"""The report of one run: a single HTML file with its figures, pictures and curves.

It asks the network for nothing. Curves are inline SVG whose colours are the page's variables, so
they follow the reader's light or dark scheme. Numbers and words come from `cluster.view.progress`.
"""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from aalnet.settings import Settings
from cluster.runs.figures import Figure, figures, silence
from cluster.runs.goodput import goodput
from cluster.runs.run import Record, Run, find_run, latest, run_status
from cluster.view import progress

MAX_POINTS = 500
MAX_GRIDS = 48  # a page of megabytes, not of hundreds
LOG_SPAN = 300.0  # positive values that span more are drawn on a logarithmic axis

WORDS = {
    "step": "training steps", "data": "waiting for data", "evaluation": "evaluation",
    "checkpoint": "copying checkpoints", "start": "starting", "recovery": "recovering",
    "lost work": "work done again", "other": "other",
}  # fmt: skip
WIDTH_PT, HEIGHT_PT = 238, 137
NICE_STEPS = [1, 2, 2.5, 5, 10]
Values = NDArray[np.float64]

# Colours are written as these and become variables of the page's style.
INK, MUTED, LINES = "#010203", "#010204", ("#010205", "#010206")
VARIABLES = {INK: "--muted", MUTED: "--line", LINES[0]: "--curve-1", LINES[1]: "--curve-2"}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "aalnet", "font.size": 8,
    "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4), "grid.color": MUTED, "grid.linewidth": 0.6,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.size": 2, "ytick.major.size": 0, "ytick.minor.size": 0,
    "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.03,
}  # fmt: skip


@dataclass(frozen=True)
class PlotLine:
    """One line of a curve: values at images, and the constant it should beat."""

    name: str
    images: Values
    values: Values
    floor: float | None = None
    dots: bool = False
    may_be_log: bool = False


@dataclass(frozen=True)
class Curve:
    """A small drawing with its caption."""

    title: str
    lines: list[PlotLine]

    @property
    def latest(self) -> list[tuple[str, str]]:
        """Name and last finite value of every line."""
        last = [(line.name, line.values[np.isfinite(line.values)]) for line in self.lines]
        return [(name, progress.number(float(v[-1])) if len(v) else "–") for name, v in last]

    @property
    def svg(self) -> Markup:
        """The drawing as an inline element."""
        return _draw(self.lines)


def build_report(run: Run) -> str:
    """The report of a run as it is now, as one HTML page.

    Raises:
        CheckpointError: the run was never started.
    """
    _, settings = find_run(run.store, run.name)
    records = run.records()
    evaluations, train = _of_kind(records, "evaluation"), _of_kind(records, "train")
    end, last = latest(records, "end"), evaluations[-1] if evaluations else None
    status = run_status(records)
    return _template().render(
        run=run,
        settings=settings,
        status=status,
        error=end.get("error") if end and status == "failed" else None,
        facts=_facts(settings, records, train),
        figures=[_against_floor(figure, evaluations) for figure in _final(evaluations)],
        evaluated=last,
        silence=silence(last, last["images"], settings.run.images) if last else None,
        grids=_grids(run),
        grid_count=len(run.samples()),
        curves=_curves(train, evaluations),
        settings_yaml=yaml.safe_dump(settings.to_dict(), sort_keys=False),
        time=_time_spent(settings, records),
        goodput=goodput(records, settings.data.batch_images),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def _template() -> Template:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": progress.number, "duration": progress.duration}
    return environment.get_template("report.html.j2")


def _of_kind(records: list[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _facts(settings: Settings, records: list[Record], train: list[Record]) -> list[tuple[str, str]]:
    starts = _of_kind(records, "start")
    images = records[-1]["images"] if records else 0
    rates = [record["images_per_s"] for record in train if record.get("images_per_s")]
    start, keys = starts[-1] if starts else {}, ("workers", "device")
    facts = [
        ("Images", f"{images:,} of {settings.run.images:,}"),
        ("Duration", progress.duration(sum(_sessions(records)))),
        ("Speed", f"{progress.number(float(np.median(rates)))} images/s" if rates else "–"),
        ("Workers", " × ".join(str(start[key]) for key in keys if key in start) or "–"),
        ("Batch", f"{settings.data.batch_images} at {settings.data.size_px} px"),
        ("Network", f"{settings.network.preset}, {settings.network.blocks}"),
    ]
    return [*facts, ("Resumed", f"{len(starts) - 1}×")] if len(starts) > 1 else facts


def _final(evaluations: list[Record]) -> list[Figure]:
    return figures(evaluations[-1]) if evaluations else []


def _against_floor(figure: Figure, evaluations: list[Record]) -> dict[str, Any]:
    """A row of the table: the last value, its floor, and the best of the run."""
    have = [record for record in evaluations if isinstance(record.get(figure.name), int | float)]
    pick = max if figure.higher_is_better else min
    return {"figure": figure, "best": pick(have, key=lambda record: record[figure.name])}


def _sessions(records: list[Record]) -> list[float]:
    """Seconds from each start to the last record before the next start."""
    seconds: list[float] = []
    started_s = None
    for record in records:
        now_s = record.get("time_s")
        if now_s is None:
            continue
        if record["kind"] == "start" or started_s is None:
            started_s = now_s
            seconds.append(0.0)
        seconds[-1] = max(now_s - started_s, 0.0)
    return seconds


def _time_spent(settings: Settings, records: list[Record]) -> list[tuple[str, float, float]]:
    """What, seconds and share of the whole; `other` is what nobody measured."""
    seconds = goodput(records, settings.data.batch_images).seconds
    total = sum(seconds.values())
    return [(WORDS[part], s, s / total) for part, s in seconds.items() if s] if total else []


def _grids(run: Run) -> list[tuple[int, str]]:
    """Images seen and the picture as base64, oldest first; many are thinned evenly."""
    keys = sorted(run.samples().items())
    chosen = sorted({round(i) for i in np.linspace(0, len(keys) - 1, min(len(keys), MAX_GRIDS))})
    return [(keys[i][0], base64.b64encode(run.store.read(keys[i][1])).decode()) for i in chosen]


def _curves(train: list[Record], evaluations: list[Record]) -> list[tuple[str, list[Curve]]]:
    """Headings and their curves; empty ones are left out."""
    names = dict.fromkeys(name for record in train for name in progress.terms_of(record))
    at_train = np.array([record["images"] for record in train], float)
    terms = [progress.terms_of(record) for record in train]

    def term(name: str) -> Curve:
        return Curve(name, [PlotLine(name, at_train, _column(terms, name), may_be_log=True)])

    def speed(title: str, fields: Sequence[str]) -> Curve:
        return Curve(title, [PlotLine(name, at_train, _column(train, name)) for name in fields])

    groups = [
        ("Held-out figures", _evaluation_curves(evaluations)),
        ("Terms of the objective, unweighted", [term(n) for n in names if not progress.is_norm(n)]),
        ("Norms of gradients", [term(name) for name in names if progress.is_norm(name)]),
        ("Schedule and speed", [
            speed("learning rate", ["lr"]),
            speed("seconds of a step", ["step_s", "data_s"]),
            speed("images per second", ["images_per_s"]),
        ] if train else []),
    ]  # fmt: skip
    return [(heading, curves) for heading, curves in groups if curves]


def _evaluation_curves(evaluations: list[Record]) -> list[Curve]:
    at = np.array([record["images"] for record in evaluations], float)
    lines = {
        figure.name: PlotLine(
            figure.name, at, _column(evaluations, figure.name), figure.floor, dots=True
        )
        for figure in _final(evaluations)
    }
    likeness = [lines.pop(name) for name in ("l1", "best_of_k_l1") if name in lines]
    curves = [Curve(name, [line]) for name, line in lines.items()]
    if likeness:
        curves.insert(3, Curve("mean absolute difference", likeness))
    return curves


def _column(rows: Iterable[dict[str, Any]], name: str) -> Values:
    """One figure of all records; NaN where it is missing or not finite."""
    column = [row.get(name) for row in rows]
    values = np.array([v if isinstance(v, int | float) else np.nan for v in column], float)
    return np.where(np.isfinite(values), values, np.nan)


def thin(images: Values, values: Values) -> tuple[Values, Values, Values, Values]:
    """At most MAX_POINTS of (images, mean, smallest, largest), without NaN: means of chunks."""
    there = ~np.isnan(values)
    images, values = images[there], values[there]
    count = min(len(values), MAX_POINTS)
    edges = np.linspace(0, len(values), count + 1).astype(int)[:-1]
    if not count:
        return images, values, values, values
    sizes = np.diff([*edges, len(values)])
    mean = np.add.reduceat(values, edges) / sizes
    lows, highs = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    return images[edges + sizes - 1], mean, lows, highs


def _draw(lines: list[PlotLine]) -> Markup:
    """Lines over images as an inline SVG element in the page's colours and font."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        picture = Picture(figsize=(WIDTH_PT / 72, HEIGHT_PT / 72))
        FigureCanvasSVG(picture)
        axes = picture.add_subplot()
        for line, colour in zip(lines, LINES, strict=False):
            _draw_line(axes, line, colour)
        _set_axes(axes, lines)
        file = io.StringIO()
        picture.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(file.getvalue()))  # matplotlib's own; no text of a run is in it


def _draw_line(axes: Axes, line: PlotLine, colour: str) -> None:
    images, mean, low, high = thin(line.images, line.values)
    if len(mean) < np.isfinite(line.values).sum():
        axes.fill_between(images, low, high, color=colour, alpha=0.2, linewidth=0)
    few = line.dots or len(mean) == 1
    axes.plot(images, mean, color=colour, linewidth=1.4, marker="o" if few else "", markersize=3)
    if line.floor is not None:
        axes.axhline(line.floor, color=INK, linewidth=1, linestyle=(0, (4, 3)))


def _set_axes(axes: Axes, lines: list[PlotLine]) -> None:
    finite = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    wide = len(finite) and finite.min() > 0 and finite.max() / finite.min() > LOG_SPAN
    if wide and all(line.may_be_log for line in lines):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=NICE_STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=NICE_STEPS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)


def _for_page(svg: str) -> str:
    """The bare element: no ids to clash, no fixed size, no metadata, the page's colours."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"(?s)<metadata>.*?</metadata>", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'<svg viewBox="0 0 {WIDTH_PT} {HEIGHT_PT}" aria-hidden="true">{body}'

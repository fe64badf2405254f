"""`aalnet watch RUN`: a run's metrics on a terminal, from its log or from its scrape address."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aalnet.settings import Settings
from cluster.runs.run import Record
from cluster.telemetry.records import RecordFigures
from cluster.telemetry.tally import Tally
from cluster.view.progress import duration, number, printable, progress_of
from cluster.view.scrape import Sample, samples_of
from cluster.view.screen import GAP, LINE, WIDE, History, Line, Screen, page, rows

RATE, STEP_S, DATA_S = "images_per_s", "step_s", "data_s"  # of the log, no metrics of their own
LAST_WARNINGS = 3
SHORT = {"generator": "G", "discriminator": "D"}


class RunScreen(Screen):
    """A run's screen that is fed by scrapes."""

    def __init__(self, name: str, total_images: int, console: Console | None = None) -> None:
        super().__init__("starting", console)
        self._name, self._total_images = name, total_images
        self._warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Show a warning under the figures."""
        with self._lock:
            self._warnings = [*self._warnings, text][-LAST_WARNINGS:]

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        with self._lock:
            left = _objective(self.history)
            right = [*_held_out(self.history), GAP, *_machine(self.history)]
            body: RenderableType
            if self.console.width >= WIDE:
                body = Table.grid(padding=(0, 2))
                body.add_row(rows(left), rows(right))
            else:
                body = rows([*left, GAP, *right])
            notes = [Text(printable(text), style="yellow") for text in self._warnings]
            head = _progress(self.history, self._total_images)
            return page(f"run {self._name}", self.status, [head, Text(), body, *notes])


class LogScreen(RunScreen):
    """A run's screen that is fed by the records of its log."""

    def __init__(self, name: str, settings: Settings, console: Console | None = None) -> None:
        super().__init__(name, settings.run.images, console)
        self._tally = Tally(run=name, worker="0")
        self._figures = RecordFigures(self._tally, settings)

    def show(self, record: Record) -> None:
        """Take in one record."""
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # damaged
            self._figures.see(record)
        if record["kind"] == "warning":
            self.warn(str(record.get("text", "")))
        extra: list[Sample] = [
            (name, {}, record[name]) for name in (RATE, STEP_S, DATA_S) if name in record
        ]
        self.take([*samples_of(self._tally.snapshot()), *extra], self._figures.status)


def _progress(history: History, total_images: int) -> Text:
    seen, rate = history.get("aalnet_run_images") or 0.0, history.get(RATE)
    share = min(seen / total_images, 1.0) if total_images else 0.0
    full = round(share * LINE)
    words = [f"images {progress_of(int(seen), total_images)}", f"{share:.0%}"]
    if rate:
        words.append(f"{number(rate)} images/s")
    if rate and seen < total_images:
        words.append(f"eta {duration((total_images - seen) / rate)}")
    bar = Text.assemble(("━" * full, "green"), ("━" * (LINE - full), "dim"))
    return Text.assemble(words[0], "  ", bar, "  ", "  ".join(words[1:]))


def _objective(history: History) -> list[Line]:
    """Raw terms, what D judges rightly, the gradients and the learning rate."""
    parts = (
        ("aalnet_term", "term", ""),
        ("aalnet_discriminator_accuracy_ratio", "on", "D right, "),
        ("aalnet_gradient_norm", "side", "gradient, "),
    )
    lines = [
        _line(history, metric, f"{prefix}{SHORT.get(value, value)}", **{label: value})
        for metric, label, prefix in parts
        for value in sorted(history.by(metric, label))
    ]
    return [*lines, _line(history, "aalnet_learning_rate", "learning rate")]


def _held_out(history: History) -> list[Line]:
    """The last evaluation's figures, against those of returning the condition."""
    lines = []
    for figure in history.by("aalnet_evaluation_figure", "figure"):
        name, value, line, _ = _line(history, "aalnet_evaluation_figure", figure, figure=figure)
        floor = history.get("aalnet_evaluation_floor", figure=figure)
        lines.append((name, value, line, f"floor {number(floor)}" if floor else ""))
    return lines or [("no evaluation yet", "", "", "")]


def _machine(history: History) -> list[Line]:
    """Speed, goodput, workers, the newest checkpoint and restarts."""
    keys: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("images/s", RATE, number),
        ("step", STEP_S, _milliseconds),
        ("data wait", DATA_S, _milliseconds),
        ("goodput", "aalnet_goodput_ratio", _percent),
    )
    lines = [
        (name, _shown(history, key, text), history.line(key, LINE), "") for name, key, text in keys
    ]
    if (workers := history.get("aalnet_workers")) is not None:
        wanted = history.get("aalnet_workers_wanted") or 0
        line = history.line("aalnet_workers", LINE)
        lines.append(("workers", f"{workers:.0f} of {wanted:.0f}", line, ""))
    if (images := history.get("aalnet_checkpoint_images")) is not None:
        at_s = history.get("aalnet_checkpoint_timestamp_seconds") or 0.0
        mib = (history.get("aalnet_checkpoint_bytes") or 0.0) / 2**20
        told = f"{mib:.1f} MiB, {duration(time.time() - at_s)} ago"
        lines.append(("checkpoint", f"{images:,.0f}", told, ""))
    causes = history.by("aalnet_restarts_total", "cause").items()
    restarts = ", ".join(f"{count:.0f} after {cause}" for cause, count in causes if count)
    lines.append(("restarts", restarts or "none", "", ""))
    return lines


def _line(history: History, metric: str, name: str, **labels: str) -> Line:
    value = history.get(metric, **labels)
    shown = "-" if value is None else number(value)
    return name, shown, history.line(metric, LINE, **labels), ""


def _shown(history: History, key: str, text: Callable[[float], str]) -> str:
    value = history.get(key)
    return "-" if value is None else text(value)


def _milliseconds(seconds: float) -> str:
    return f"{number(1e3 * seconds)} ms"


def _percent(share: float) -> str:
    return f"{share:.0%}"

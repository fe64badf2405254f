"""`aalnet watch RUN`: a run's metrics on a terminal, from its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aalnet.settings import Settings
from cluster.runs.run import Record
from cluster.telemetry.log_metrics import LogMetrics
from cluster.telemetry.metrics import RunMetrics
from cluster.view.progress import duration, number, printable, progress_of
from cluster.view.screen import (
    BLANK,
    POINTS,
    WIDE,
    History,
    Row,
    Screen,
    bar,
    page,
    table,
    values_of,
)

RATE, STEP_S, DATA_S = "images_per_s", "step_s", "data_s"  # of the log, no metrics of their own
LAST_WARNINGS = 3
SHORT = {"generator": "G", "discriminator": "D"}


class RunScreen(Screen):
    """Shows a run while it is entered, by the records of its log."""

    def __init__(self, name: str, settings: Settings, console: Console | None = None) -> None:
        super().__init__("starting", console)
        self._name, self._total_images = name, settings.run.images
        self._warnings: list[str] = []
        self._metrics = RunMetrics(run=name, worker="0")
        self._log = LogMetrics(self._metrics, settings)

    def restore(self, records: Sequence[Record]) -> None:
        """Take in what there is; of a long log's means only those that a sparkline can hold."""
        for after, record in zip(reversed(range(len(records))), records, strict=True):
            self._add(record)
            if after < POINTS or record["kind"] != "train":
                self._take(record)

    def show(self, record: Record) -> None:
        """Take in one record."""
        self._add(record)
        self._take(record)

    def _add(self, record: Record) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self._log.add(record)  # as far as it is whole
        if record["kind"] == "warning":
            with self._lock:
                self._warnings = [*self._warnings, str(record.get("text", ""))][-LAST_WARNINGS:]

    def _take(self, record: Record) -> None:
        values = values_of(self._metrics.registry.collect())
        for name in (RATE, STEP_S, DATA_S):
            if isinstance(record.get(name), int | float):
                values[name, ()] = record[name]
        self.take(values, self._log.status)

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        with self._lock:
            objective = _objective(self.history)
            others = [*_held_out(self.history), BLANK, *_machine(self.history)]
            body: RenderableType
            if self.console.width >= WIDE:
                body = Table.grid(padding=(0, 2))
                body.add_row(table(objective), table(others))
            else:
                body = table([*objective, BLANK, *others])
            warnings = self._warnings
            if self.history.get("aalnet_run_silent"):
                warnings = [*warnings, "samples no longer differ: see docs/runbook.md"]
            notes = [Text(printable(text), style="yellow") for text in warnings]
            head = _progress(self.history, self._total_images)
            return page(f"run {self._name}", self.status, [head, Text(), body, *notes])


def _progress(history: History, total_images: int) -> Text:
    images, rate = history.get("aalnet_run_images") or 0.0, history.get(RATE)
    share = min(images / total_images, 1.0) if total_images else 0.0
    words = [f"{share:.0%}"]
    if rate:
        words.append(f"{number(rate)} images/s")
    if rate and images < total_images:
        words.append(f"eta {duration((total_images - images) / rate)}")
    return Text.assemble(
        f"images {progress_of(int(images), total_images)}  ", bar(share), "  ", "  ".join(words)
    )


def _objective(history: History) -> list[Row]:
    """Raw terms, what D judges rightly, the gradients and the learning rate."""
    parts = (
        ("aalnet_term", "term", ""),
        ("aalnet_discriminator_accuracy_ratio", "on", "D right, "),
        ("aalnet_gradient_norm", "side", "gradient, "),
    )
    rows = [
        _row(history, metric, f"{prefix}{SHORT.get(value, value)}", **{label: value})
        for metric, label, prefix in parts
        for value in sorted(history.by(metric, label))
    ]
    return [*rows, _row(history, "aalnet_learning_rate", "learning rate")]


def _held_out(history: History) -> list[Row]:
    """The last evaluation's figures, against those of returning the condition."""
    rows = []
    for figure in history.by("aalnet_evaluation_figure", "figure"):
        name, value, line, _ = _row(history, "aalnet_evaluation_figure", figure, figure=figure)
        floor = history.get("aalnet_evaluation_floor", figure=figure)
        rows.append((name, value, line, f"floor {number(floor)}" if floor else ""))
    return rows or [("no evaluation yet", "", "", "")]


def _machine(history: History) -> list[Row]:
    """Speed, goodput, the newest checkpoint and restarts."""
    keys: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("images/s", RATE, number),
        ("step", STEP_S, _milliseconds),
        ("data wait", DATA_S, _milliseconds),
        ("goodput", "aalnet_goodput_ratio", _percent),
    )
    rows = [
        (name, _text_of(history, key, text), history.sparkline(key), "") for name, key, text in keys
    ]
    if (images := history.get("aalnet_checkpoint_images")) is not None:
        at_s = history.get("aalnet_checkpoint_timestamp_seconds") or 0.0
        mib = (history.get("aalnet_checkpoint_bytes") or 0.0) / 2**20
        facts = f"{mib:.1f} MiB, {duration(time.time() - at_s)} ago"
        rows.append(("checkpoint", f"{images:,.0f}", facts, ""))
    causes = history.by("aalnet_restarts_total", "cause").items()
    restarts = ", ".join(f"{count:.0f} after {cause}" for cause, count in causes if count)
    rows.append(("restarts", restarts or "none", "", ""))
    return rows


def _row(history: History, metric: str, name: str, **labels: str) -> Row:
    value = history.get(metric, **labels)
    return name, "-" if value is None else number(value), history.sparkline(metric, **labels), ""


def _text_of(history: History, key: str, text: Callable[[float], str]) -> str:
    value = history.get(key)
    return "-" if value is None else text(value)


def _milliseconds(seconds: float) -> str:
    return f"{number(1e3 * seconds)} ms"


def _percent(share: float) -> str:
    return f"{share:.0%}"

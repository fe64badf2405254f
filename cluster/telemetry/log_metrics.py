"""A run's log as metrics: what worker 0 publishes of the run, and what `aalnet watch` shows."""

from __future__ import annotations

from typing import Any, get_args

from aalnet.settings import RetryCause, Settings
from cluster.runs.figures import floor_of, names, silence, spread
from cluster.runs.goodput import PARTS, Account
from cluster.runs.run import Record
from cluster.telemetry.metrics import RunMetrics

RESTARTS = (*get_args(RetryCause), "resize", "driver")
NON_FINITE = "non_finite"  # as cluster/training/policy.py has it, which needs torch
NAMES = 100  # of terms, figures and causes together, whatever a damaged log holds
ACCURACIES = {
    "discriminator_accuracy": "pairs", "real_accuracy": "real", "fake_accuracy": "generated",
}  # fmt: skip
NORMS = {"generator_norm": "generator", "discriminator_norm": "discriminator"}
COUNTERS = ("aalnet_non_finite_total", "aalnet_warnings_total", "aalnet_lost_images_total",
            "aalnet_checkpoints_total", "aalnet_checkpoint_written_bytes_total")  # fmt: skip


class LogMetrics:
    """Turns records, as they are logged, into metrics.

    Counters start with the process, as Prometheus expects, but for what a start itself counts
    (restarts, lost images) and seconds by part: those are over all of the run's starts.
    """

    def __init__(self, metrics: RunMetrics, settings: Settings) -> None:
        self.status = "starting"
        self._metrics, self._saved, self._names = metrics, False, set(RESTARTS)
        self._total_images = settings.run.images
        self._account = Account(settings.data.batch_images)
        for name in COUNTERS:
            metrics.count(name, 0)
        for cause in RESTARTS:
            metrics.count("aalnet_restarts_total", 0, cause=cause)

    def add(self, record: Record, *, past: bool = False) -> None:
        """Take in one record; `past`: of an earlier start.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it is damaged.
        """
        self._account.add(record)
        kind, metrics = record["kind"], self._metrics
        metrics.set("aalnet_run_images", record["images"])
        if kind == "start":
            self._add_start(record)
        elif kind == "train":
            self._add_train(record)
        elif kind == "evaluation":
            self._add_evaluation(record, past=past)
        elif kind == "checkpoint":
            self._add_checkpoint(record, past=past)
        elif kind == "warning" and not past:
            metrics.count("aalnet_warnings_total")
        elif kind == "end":
            self.status = str(record["status"])
            if record.get("cause") == NON_FINITE and not past:
                metrics.count("aalnet_non_finite_total")
        if not past:  # a start follows whatever is past
            goodput = self._account.goodput()
            for part in PARTS:
                metrics.set("aalnet_run_seconds", goodput.seconds[part], part=part)
            metrics.set("aalnet_goodput_ratio", goodput.share)

    def _set(self, metric: str, label: str, name: str, value: Any) -> None:
        """Set a gauge whose label's values come from the log: so many of them, and no more."""
        if name in self._names or len(self._names) < NAMES:
            self._names.add(name)
            self._metrics.set(metric, value, **{label: name})

    def _add_start(self, record: Record) -> None:
        metrics, self.status = self._metrics, "running"
        if not self._saved:
            metrics.set("aalnet_checkpoint_timestamp_seconds", record["time_s"])
        if record.get("cause") in RESTARTS:
            metrics.count("aalnet_restarts_total", cause=record["cause"])
        metrics.count("aalnet_lost_images_total", record.get("lost_images", 0))

    def _add_train(self, record: Record) -> None:
        metrics = self._metrics
        metrics.set("aalnet_learning_rate", record["lr"])
        for name, value in record["terms"].items():
            if name in ACCURACIES:
                metrics.set("aalnet_discriminator_accuracy_ratio", value, on=ACCURACIES[name])
            elif name in NORMS:
                metrics.set("aalnet_gradient_norm", value, side=NORMS[name])
            else:
                self._set("aalnet_term", "term", name, value)

    def _add_evaluation(self, record: Record, *, past: bool) -> None:
        metrics = self._metrics
        for name in names(record):
            self._set("aalnet_evaluation_figure", "figure", name, record[name])
            if (floor := floor_of(record, name)) is not None:
                self._set("aalnet_evaluation_floor", "figure", name, floor)
        metrics.set("aalnet_evaluation_at_images", record["images"])
        if (share := spread(record)) is not None:
            metrics.set("aalnet_evaluation_spread_ratio", share)
        silent = silence(record, record["images"], self._total_images) is not None
        metrics.set("aalnet_run_silent", silent)
        if "ema_distance" in record:
            metrics.set("aalnet_ema_distance_ratio", record["ema_distance"])
        if not past:
            metrics.observe("aalnet_evaluation_seconds", record["seconds"])

    def _add_checkpoint(self, record: Record, *, past: bool) -> None:
        metrics, self._saved = self._metrics, True
        metrics.set("aalnet_checkpoint_images", record["images"])
        metrics.set("aalnet_checkpoint_timestamp_seconds", record["time_s"])
        metrics.set("aalnet_checkpoint_bytes", record["bytes"])
        if not past:
            metrics.count("aalnet_checkpoints_total")
            metrics.count("aalnet_checkpoint_written_bytes_total", record["bytes"])
            metrics.observe("aalnet_checkpoint_seconds", record["seconds"])
            metrics.observe("aalnet_checkpoint_stall_seconds", record["stall_s"])

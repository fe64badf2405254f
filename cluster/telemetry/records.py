"""A run's log as metrics: what worker 0 tells of the run, and what `aalnet watch` reads."""

from __future__ import annotations

from typing import get_args

from aalnet.settings import FailureCause, Settings
from cluster.runs.figures import FIGURE_ORDER, floor_of, kid_name
from cluster.runs.goodput import PARTS, Account
from cluster.runs.run import Record
from cluster.telemetry.tally import Tally

RESTARTS = (*get_args(FailureCause), "resize", "driver")
NON_FINITE = "non_finite"  # as cluster/training/policy.py has it, which needs torch
ACCURACIES = {
    "discriminator_accuracy": "pairs", "real_accuracy": "real", "fake_accuracy": "generated",
}  # fmt: skip
NORMS = {"generator_norm": "generator", "discriminator_norm": "discriminator"}
COUNTED = ("aalnet_non_finite_total", "aalnet_warnings_total", "aalnet_lost_images_total",
           "aalnet_checkpoints_total", "aalnet_checkpoint_written_bytes_total")  # fmt: skip


class RecordFigures:
    """Turns records, as they are logged, into numbers of a tally.

    Counters start with the process, as Prometheus expects, but for what a start itself counts
    (restarts, lost images) and seconds by part: those are over all of the run's starts.
    """

    def __init__(self, tally: Tally, settings: Settings) -> None:
        self.status = "starting"
        self._tally, self._saved = tally, False
        self._account = Account(settings.data.batch_images)
        for name in COUNTED:
            tally.add(name, 0.0)
        for cause in RESTARTS:
            tally.set("aalnet_restarts_total", 0.0, cause=cause)

    def see(self, record: Record, *, past: bool = False) -> None:
        """Take in one record; `past`: of an earlier start."""
        self._account.add(record)
        kind, tally = record["kind"], self._tally
        tally.set("aalnet_run_images", record["images"])
        if kind == "start":
            self.status = "running"
            if not self._saved:
                tally.set("aalnet_checkpoint_timestamp_seconds", record["time_s"])
            tally.add("aalnet_lost_images_total", record.get("lost_images", 0))
        elif kind == "train":
            self._see_train(record)
        elif kind == "evaluation":
            self._see_evaluation(record, past=past)
        elif kind == "checkpoint":
            self._see_checkpoint(record, past=past)
        elif kind == "warning" and not past:
            tally.add("aalnet_warnings_total")
        elif kind == "end":
            self.status = str(record["status"])
            if record.get("cause") == NON_FINITE and not past:
                tally.add("aalnet_non_finite_total")
        if not past:  # a start follows whatever is past
            self._see_time()

    def _see_time(self) -> None:
        spent = self._account.goodput()
        for part in PARTS:
            self._tally.set("aalnet_run_seconds", spent.seconds[part], part=part)
        self._tally.set("aalnet_goodput_ratio", spent.share)
        for cause, count in spent.restarts.items():
            self._tally.set("aalnet_restarts_total", count, cause=cause)

    def _see_train(self, record: Record) -> None:
        tally = self._tally
        tally.set("aalnet_learning_rate", record["lr"])
        for name, value in record["terms"].items():
            if name in ACCURACIES:
                tally.set("aalnet_discriminator_accuracy_ratio", value, on=ACCURACIES[name])
            elif name in NORMS:
                tally.set("aalnet_gradient_norm", value, side=NORMS[name])
            else:
                tally.set("aalnet_term", value, term=name)

    def _see_evaluation(self, record: Record, *, past: bool) -> None:
        tally = self._tally
        for name in (kid_name(record), *FIGURE_ORDER):
            if name is None or record.get(name) is None:
                continue
            tally.set("aalnet_evaluation_figure", record[name], figure=name)
            if (floor := floor_of(record, name)) is not None:
                tally.set("aalnet_evaluation_floor", floor, figure=name)
        tally.set("aalnet_evaluation_at_images", record["images"])
        if "ema_distance" in record:
            tally.set("aalnet_ema_distance_ratio", record["ema_distance"])
        if not past:
            tally.observe("aalnet_evaluation_seconds", record["seconds"])

    def _see_checkpoint(self, record: Record, *, past: bool) -> None:
        tally, self._saved = self._tally, True
        tally.set("aalnet_checkpoint_images", record["images"])
        tally.set("aalnet_checkpoint_timestamp_seconds", record["time_s"])
        tally.set("aalnet_checkpoint_bytes", record["bytes"])
        if not past:
            tally.add("aalnet_checkpoints_total")
            tally.add("aalnet_checkpoint_written_bytes_total", record["bytes"])
            tally.observe("aalnet_checkpoint_seconds", record["seconds"])
            tally.observe("aalnet_checkpoint_stall_seconds", record["stall_s"])

"""One trial, or the repeat of one, in the process that Ray Tune gave it: an ordinary run, watched.

With one worker it trains here, with more as a nested Ray Train run. The run's name is the trial's,
so the same trial again goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import ray
import torch
from ray.actor import ActorHandle

from aalnet.errors import AalnetError
from aalnet.evaluation import Figures
from aalnet.settings import Settings, parse_settings
from cluster.background import in_background
from cluster.launch.launcher import Placement, train_here, train_with_ray
from cluster.runs.checkpoint import checkpoints
from cluster.runs.goodput import goodput
from cluster.runs.run import Record, Run, latest
from cluster.storage.fenced import leased
from cluster.storage.lease import LeaseHeld
from cluster.storage.location import open_store
from cluster.storage.store import StoreError
from cluster.training.stop import Stop
from cluster.view.progress import follow
from cluster.view.report import build_report
from tuner.server import ANSWER_S
from tuner.study import Cost, Outcome, TrialRun

CHECK_S = 1.0  # between two looks whether the campaign goes on
HELD_S = 120.0  # a process that died may hold the run's lease for so long


def make_run(
    server: ActorHandle[Any], trial: TrialRun, storage: str, device: str, working_folder: str
) -> None:
    """Train one run of a campaign to its end, and tell the study what came of it."""
    with contextlib.suppress(FileNotFoundError):
        os.chdir(working_folder)  # so that relative data paths mean the same here
    run = Run(open_store(storage), trial.run)
    try:
        outcome = train(server, trial, run, device)
    except Exception as error:  # noqa: BLE001, it fails this trial alone, and is told
        outcome = Outcome("failed", reason=_reason(error))
    with contextlib.suppress(StoreError):  # then without: the outcome is worth more
        outcome = replace(outcome, cost=cost_of(run, trial.settings), files=files_of(run))
    try:
        ray.get(server.tell.remote(trial.to_dict(), outcome), timeout=ANSWER_S)
    except Exception as error:  # noqa: BLE001, its driver has the same error, and tells it
        print(f"the campaign cannot take the outcome: {error!r}", file=sys.stderr)


class Reporter:
    """Reports a run's evaluations to the study, and stops the run where it is not to go on."""

    def __init__(self, server: ActorHandle[Any], trial: TrialRun, stop: Stop) -> None:
        self._server, self._trial, self._stop = server, trial, stop
        self.pruned = False
        self.cancelled = False  # the campaign is stopped, or gone

    def report(self, images: int, figures: Figures) -> None:
        """Report an evaluation; a run that is pruned is asked to stop."""
        verdict = self._answer(
            self._server.report.remote(self._trial.to_dict(), images, dict(figures))
        )
        if verdict == "prune":
            self.pruned = True
            self._stop.now()

    def report_records(self, records: Iterable[Record]) -> None:
        """Report the evaluations in a log, perhaps again: a process may have died before it did."""
        for record in records:
            if record["kind"] == "evaluation":
                self.report(record["images"], record)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile a thread stops the run when the campaign is stopped, or gone."""

        def listen(done: threading.Event) -> None:
            while not done.wait(CHECK_S):
                if not (self.cancelled or self.pruned):
                    self.cancelled = not self._answer(self._server.goes_on.remote())
                if self.cancelled or self.pruned:
                    self._stop.now()  # again and again: training may not have begun to listen

        with in_background(listen, "asks the campaign"):
            yield

    def _answer(self, reply: Any) -> Any:
        """The study's answer; None where it cannot answer, which ends the run."""
        try:
            return ray.get(reply, timeout=ANSWER_S)
        except Exception as error:  # noqa: BLE001, its driver has the same error, and tells it
            print(f"the campaign does not answer: {error!r}", file=sys.stderr)
            self.cancelled = True
            self._stop.now()
            return None


def train(server: ActorHandle[Any], trial: TrialRun, unleased: Run, device: str) -> Outcome:
    """Train a run to its end, or to where it is pruned or stopped.

    Raises:
        AalnetError: it failed.
    """
    settings, stop = parse_settings(trial.settings), Stop()
    with _leased(unleased, stop) as run:
        run.claim(settings)
        reporter = Reporter(server, trial, stop)
        reporter.report_records(run.records())
        status: Literal["finished", "stopped"] = "finished"
        if not _is_finished(run, settings):
            status = "stopped"
            if not (reporter.pruned or reporter.cancelled):
                with reporter.listening():
                    status = _train(run, settings, device, reporter, stop)
        run.close_log(status)
        run.store.write(run.key("report.html"), build_report(run).encode())
        evaluation = latest(run.records(), "evaluation") or {}
    pruned = reporter.pruned and status == "stopped"
    return Outcome("pruned" if pruned else status, evaluation)


def _train(
    run: Run, settings: Settings, device: str, reporter: Reporter, stop: Stop
) -> Literal["finished", "stopped"]:
    workers = settings.run.workers
    assert isinstance(workers, int)
    if workers == 0:
        torch.set_num_threads(1 if device == "cuda" else max(1, int(_cpus())))
        status = train_here(run, settings, Placement(0, device, "a trial"), stop, reporter.report)
    else:
        with _reporting_log(run, reporter):
            status = train_with_ray(run, settings, Placement(workers, device, "a trial"), stop)
    return "finished" if status == "finished" else "stopped"


@contextlib.contextmanager
def _reporting_log(run: Run, reporter: Reporter) -> Iterator[None]:
    """Meanwhile a thread reports a nested run's evaluations, as they come into its log."""
    count = len(run.records())

    def report(done: threading.Event) -> None:
        reporter.report_records(follow(run, from_records=count, stop=done))

    with in_background(report, "figures"):
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, AalnetError):
        return str(error)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def _leased(run: Run, stop: Stop) -> Iterator[Run]:
    """The run, while this process holds its lease; waits for a dying process to let go of it."""
    end_s = time.monotonic() + HELD_S
    while True:
        with contextlib.ExitStack() as stack:
            try:
                lease = leased(run.store, run.key("lease"), f"run `{run.name}`", stop.now)
                store = stack.enter_context(lease)
            except LeaseHeld as error:
                if time.monotonic() > end_s:
                    raise
                print(f"waits: {error}", file=sys.stderr)
                time.sleep(CHECK_S)
                continue
            yield Run(store, run.name)
            return


def _is_finished(run: Run, settings: Settings) -> bool:
    whole = checkpoints(run)
    return bool(whole) and whole[-1].images >= settings.run.images


def cost_of(run: Run, settings: dict[str, Any]) -> Cost:
    """Time, images and GPU time of a run over all its starts, by its log."""
    records = run.records()
    spent_s = goodput(records, settings["data"]["batch_images"]).total_s
    images = max((record["images"] for record in records), default=0)
    started = latest(records, "start") or {}
    gpus = started.get("workers", 1) if str(started.get("device", "")).startswith("cuda") else 0
    return Cost(round(spent_s, 3), images, round(spent_s * gpus, 3))


def files_of(run: Run) -> dict[str, Any]:
    """Where a run's settings, checkpoints and last sample grid are, in its storage."""
    grids = list(run.samples().values())
    return {
        "settings": run.key("run.yaml"),
        "checkpoints": [run.key("checkpoints", f"{images}") for images in run.checkpoint_images()],
        "grid": grids[-1] if grids else None,
    }


def _cpus() -> float:
    has: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return has.get("CPU", 1.0)

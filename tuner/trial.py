"""One job of a campaign, in the process that Ray Tune gave it: an ordinary run, watched.

With one worker it trains here, with more as a nested Ray Train run. Its run's name is the trial's,
so the same job again goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
from cluster.runs.run import Record, Run
from cluster.storage.fenced import leased
from cluster.storage.lease import LeaseHeld
from cluster.storage.location import open_store
from cluster.storage.store import StoreError
from cluster.training.stop import Stop
from cluster.view.progress import follow, latest
from cluster.view.report import build_report
from tuner.study import Cost, Job, Outcome

LOOK_S = 1.0  # between two looks whether the campaign still wants this job
ANSWER_S = 120.0  # the campaign answers within this, or is gone
HELD_S = 120.0  # a process that died may hold the run's lease for so long


class Watch:
    """Tells the campaign of a job's figures, and asks it whether to go on."""

    def __init__(self, campaign: ActorHandle[Any], job: Job, stop: Stop) -> None:
        self._campaign, self._job, self._stop = campaign, job, stop
        self.pruned = False
        self.unwanted = False  # the campaign is stopped, or gone

    def report(self, images: int, figures: Figures) -> None:
        """Take in an evaluation; a job that is not worth going on is asked to stop."""
        verdict = self._asked(
            self._campaign.report.remote(self._job.to_dict(), images, dict(figures))
        )
        if verdict == "prune":
            self.pruned = True
            self._stop.now()

    def recall(self, records: Sequence[Record]) -> None:
        """Tell of evaluations that a process may have died before it told of them."""
        for record in records:
            if record["kind"] == "evaluation":
                self.report(record["images"], record)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Meanwhile a thread stops the job when the campaign is stopped, or gone."""

        def ask(done: threading.Event) -> None:
            while not done.wait(LOOK_S):
                if not (self.unwanted or self.pruned):
                    self.unwanted = not self._asked(self._campaign.wants_jobs.remote())
                if self.unwanted or self.pruned:
                    self._stop.now()  # again and again: training may not have begun to listen

        with in_background(ask, "asks the campaign"):
            yield

    def _asked(self, reply: Any) -> Any:
        """The campaign's answer; None where it cannot answer, which ends the job."""
        try:
            return ray.get(reply, timeout=ANSWER_S)
        except Exception as error:  # noqa: BLE001, its driver has the same error, and tells it
            print(f"the campaign does not answer: {error!r}", file=sys.stderr)
            self.unwanted = True
            self._stop.now()
            return None


def work(config: dict[str, Any]) -> None:
    """Entry point of Ray Tune: make one job's run, and tell the campaign what came of it."""
    with contextlib.suppress(FileNotFoundError):
        os.chdir(config["working_folder"])  # so that relative data paths mean the same here
    campaign, job = config["campaign"], Job(**config["job"])
    run = Run(open_store(config["storage"]), job.run)
    try:
        found = train_job(campaign, job, run, config["device"])
    except Exception as error:  # noqa: BLE001, it fails this trial alone, and is told
        found = Outcome("failed", reason=_reason(error))
    with contextlib.suppress(StoreError):  # then without: the outcome is worth more
        found = replace(found, cost=cost_of(run, job.settings), files=files_of(run))
    try:
        ray.get(campaign.end.remote(job.to_dict(), found), timeout=ANSWER_S)
    except Exception as error:  # noqa: BLE001, its driver has the same error, and tells it
        print(f"the campaign cannot take the outcome: {error!r}", file=sys.stderr)


def _reason(error: Exception) -> str:
    if isinstance(error, AalnetError):
        return str(error)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"


def train_job(campaign: ActorHandle[Any], job: Job, found: Run, device: str) -> Outcome:
    """Train a job's run to its end, or to where it is pruned or stopped.

    Raises:
        AalnetError: it failed.
    """
    settings, stop = parse_settings(job.settings), Stop()
    with _leased(found, stop) as run:
        run.claim(settings)
        watch = Watch(campaign, job, stop)
        watch.recall(run.records())
        status: Literal["finished", "stopped"] = "finished"
        if not _is_finished(run, settings):
            status = "stopped"
            if not (watch.pruned or watch.unwanted):
                with watch.asking():
                    status = _train(run, settings, device, watch, stop)
        run.close_log(status)
        run.store.write(run.key("report.html"), build_report(run).encode())
        evaluation = latest(run.records(), "evaluation") or {}
    pruned = watch.pruned and status == "stopped"
    return Outcome("pruned" if pruned else status, evaluation)


def _train(
    run: Run, settings: Settings, device: str, watch: Watch, stop: Stop
) -> Literal["finished", "stopped"]:
    workers = settings.run.workers
    assert isinstance(workers, int)
    if workers == 0:
        torch.set_num_threads(1 if device == "cuda" else max(1, int(_cpus())))
        status = train_here(run, settings, Placement(0, device, "a trial"), stop, watch.report)
    else:
        with _following(run, watch):
            status = train_with_ray(run, settings, Placement(workers, device, "a trial"), stop)
    return "finished" if status == "finished" else "stopped"


@contextlib.contextmanager
def _following(run: Run, watch: Watch) -> Iterator[None]:
    """Meanwhile a thread tells of a nested run's evaluations, as they come into its log."""
    known = len(run.records())

    def tell(done: threading.Event) -> None:
        for record in follow(run, from_records=known, stop=done):
            watch.recall([record])

    with in_background(tell, "figures"):
        yield


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
                time.sleep(LOOK_S)
                continue
            yield Run(store, run.name)
            return


def _is_finished(run: Run, settings: Settings) -> bool:
    found = checkpoints(run)
    return bool(found) and found[-1].images >= settings.run.images


def cost_of(run: Run, settings: dict[str, Any]) -> Cost:
    """What a run took over all its starts, by its log."""
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

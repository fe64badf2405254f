"""Whole training loops in worker processes: under Ray Train, and under torch.multiprocessing."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from aalnet.settings import Settings
from benchmarks.speed.training import CYCLE, demo, gloo_workers
from benchmarks.speed.turns import Times
from benchmarks.table import Result, Row
from cluster.launch.launcher import connected, train_with_ray
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.training.loop import train
from cluster.training.recorder import Launch
from cluster.training.stop import Stop
from cluster.training.world import current_world

WORKERS = 2


def ray(quick: bool) -> Result:
    """The same loop (`cluster.training.loop.train`, demo settings, two workers with the same number
    of threads, gloo) is started in turns by Ray Train and by plain torch.multiprocessing. A local
    Ray is started for each of its runs and stopped after it, so that its own processes burden its
    side only. Seconds are those of the loop's own log (step and data wait), one record a cycle of
    16 steps; the first cycle of each run is left out. The figure is the ratio of the medians over
    all cycles.

    Where every core has a worker, the bar cannot be met: in steady state Ray's own dozen processes
    take 0.7 to 1.2 % of a core each, about a tenth of a core together, and a step waits for
    whichever worker they interrupt (two workers on two cores were busy 90 % of the time).
    RAY_worker_niceness=0 in place of Ray's 15 made no difference; switching its metrics and task
    events off won about 5 %.
    """
    pairs, cycles = (1, 2) if quick else (4, 5)
    settings = loop_settings(cycles * CYCLE, quick=quick)
    loops = {"Ray Train": ray_loop, "plain torch": plain_loop}
    times = Times({name: [] for name in loops})
    runs: dict[str, list[str]] = {name: [] for name in loops}
    for pair in range(pairs):
        for name in sorted(loops, reverse=pair % 2 == 1):
            seconds = [r["step_s"] + r["data_s"] for r in loops[name](settings)]
            times.wall[name] += seconds
            runs[name].append(f"{1e3 * median(seconds):.1f}")
    rows = [
        Row("step under Ray Train / plain torch", times.ratio(*loops), bar=1.02),
        Row("step under Ray Train", 1e3 * median(times.wall["Ray Train"]), "ms"),
    ]
    raw = [f"{name}, medians of the single runs: {', '.join(runs[name])} ms" for name in runs]
    return Result(rows, [*times.medians("step"), *raw])


def loop_settings(steps: int, *, quick: bool) -> Settings:
    """The demo's, for so many steps; one checkpoint at the end, its evaluation small."""
    batch = demo(quick=quick).data.batch_images
    return demo(
        f"run.images={steps * batch}",
        "run.checkpoint_every_images=1000000000",
        f"run.log_every_images={CYCLE * batch}",
        f"run.workers={WORKERS}",
        "run.device=cpu",
        "evaluation.max_images=32",
        "evaluation.samples=2",
        quick=quick,
    )


def plain_loop(settings: Settings) -> list[Record]:
    """Train with WORKERS gloo processes and no Ray; a record a cycle, without the first."""
    with tempfile.TemporaryDirectory() as storage:
        run = Run(FolderStore(storage), "plain")
        run.claim(settings)
        gloo_workers(_train_plain, WORKERS, settings, run)
        return _cycle_records(run)


def ray_loop(settings: Settings) -> list[Record]:
    """The same with Ray Train workers, on a Ray started and stopped for it."""
    with tempfile.TemporaryDirectory() as storage:
        run = Run(FolderStore(storage), "ray")
        run.claim(settings)
        with connected(settings, None) as placement:
            train_with_ray(run, settings, placement, Stop())
        return _cycle_records(run)


def _cycle_records(run: Run) -> list[Record]:
    """The first cycle is warm-up."""
    return [record for record in run.records() if record["kind"] == "train"][1:]


def _train_plain(rank: int, answers: Path, settings: Settings, run: Run) -> None:
    launch = Launch(time.time())
    train(run, settings, current_world(), torch.device("cpu"), lambda images, figures: None, launch)

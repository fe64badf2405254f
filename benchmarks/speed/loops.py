"""Whole training loops in worker processes: under Ray Train, and under torch.multiprocessing."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aalnet.settings import Settings
from benchmarks.speed.steps import CYCLE, demo
from cluster.launch.launcher import connected, train_with_ray
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.training.loop import train
from cluster.training.recorder import Launch
from cluster.training.stop import Stop
from cluster.training.world import current_world
from tests.support.machine import cores

WORKERS = 2


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
    """Train with WORKERS gloo processes and no Ray; the records of its log."""
    with tempfile.TemporaryDirectory() as storage:
        run = Run(FolderStore(storage), "plain")
        run.claim(settings)
        gloo_workers(_train_plain, WORKERS, settings, run)
        return run.records()


def ray_loop(settings: Settings) -> list[Record]:
    """Train with WORKERS Ray Train workers, on a Ray started and stopped for it."""
    with tempfile.TemporaryDirectory() as storage:
        run = Run(FolderStore(storage), "ray")
        run.claim(settings)
        with connected(settings, None) as placement:
            train_with_ray(run, settings, placement, Stop())
        return run.records()


def cycle_seconds(records: list[Record]) -> list[float]:
    """Seconds of an iteration, step and wait, by record; the first cycle is warm-up."""
    return [r["step_s"] + r["data_s"] for r in records if r["kind"] == "train"][1:]


def wait_share(records: list[Record]) -> float:
    """The share of the loop's time spent waiting for data; the first cycle is warm-up."""
    found = [r for r in records if r["kind"] == "train"][1:]
    shares = [float(r["data_s"] / (r["step_s"] + r["data_s"])) for r in found]
    return statistics.median(shares)


def gloo_workers(work: Callable[..., None], workers: int, *arguments: object) -> list[str]:
    """Run `work(rank, answers, *arguments)` in gloo processes; what each wrote to answers/rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _in_group, (workers, folder, work, arguments), nprocs=workers, daemon=True
        )
        files = [Path(folder) / str(rank) for rank in range(workers)]
        return [file.read_text() if file.exists() else "" for file in files]


def _in_group(
    rank: int, workers: int, folder: str, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(max(1, cores() // workers))  # as cluster/launch/worker.py does
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers
    )
    work(rank, Path(folder), *arguments)
    dist.destroy_process_group()
    # A gloo thread that lets go of a tensor while Python ends aborts the process, once in a while.
    os._exit(0)


def _train_plain(rank: int, answers: Path, settings: Settings, run: Run) -> None:
    launch = Launch(time.time())
    train(run, settings, current_world(), torch.device("cpu"), lambda images, figures: None, launch)

"""What runs inside a Ray Train worker: set the machine up, then the loop."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch

from aalnet.evaluation import Figures
from aalnet.settings import parse_settings
from cluster.launch.survival import Mail
from cluster.runs.run import Run
from cluster.storage.fenced import fenced
from cluster.storage.location import open_store
from cluster.training.loop import train
from cluster.training.recorder import Launch
from cluster.training.world import ProcessWorld, current_world


def work(config: dict[str, Any]) -> str:
    """Entry point of every worker; `config` is plain data made by the launcher."""
    with contextlib.suppress(FileNotFoundError):
        os.chdir(config["working_folder"])  # so that relative data paths mean the same here
    context = ray.train.get_context()
    run = Run(fenced(open_store(config["storage"]), config["fence"]), config["run"])
    settings = parse_settings(config["settings"])
    threads = settings.run.threads
    workers_here = context.get_local_world_size()
    torch.set_num_threads(threads_per_worker(workers_here) if threads == "auto" else threads)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    mail, world = Mail(config["launch"]), current_world()
    save = threading.Event()
    publish = partial(mail.tell_figures, world.rank) if settings.telemetry.port != 0 else None
    launch = Launch(config["launched_at_s"], mail.past, _node_is_taken, save, publish)
    with _listening(mail, world, save):
        return train(run, settings, world, device, _report, launch)


def threads_per_worker(workers_here: int) -> int:
    """torch threads of one worker, so that all workers of a machine share its cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


@contextlib.contextmanager
def _listening(mail: Mail, world: ProcessWorld, save: threading.Event) -> Iterator[None]:
    """Worker 0 listens: it saves alone, and the others learn of a stop with the sums."""
    done = threading.Event()

    def stop() -> None:
        world.stop_wished = True

    thread = threading.Thread(
        target=mail.listen, args=(stop, save.set, done), name="mail", daemon=True
    )
    if world.rank == 0:
        mail.tell_group()
        thread.start()
    try:
        yield
    finally:
        done.set()


def _report(images: int, figures: Figures) -> None:
    """Tell Ray of a checkpoint's figures: its dashboard and Ray Tune see them."""
    ray.train.report({**figures, "images_seen": images})


def _node_is_taken() -> bool:
    """Is a worker's node about to be taken away? A barrier: every worker must ask."""
    return ray.train.get_preemption_info() is not None

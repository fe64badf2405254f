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
from cluster.background import in_background
from cluster.launch.mailbox import Mailbox
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
    run = Run(fenced(open_store(config["storage"]), config["fence"]), config["run"])
    settings = parse_settings(config["settings"])
    threads, workers_here = settings.run.threads, ray.train.get_context().get_local_world_size()
    torch.set_num_threads(threads_per_worker(workers_here) if threads == "auto" else threads)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    mailbox, world = Mailbox(config["launch"]), current_world()
    publish = partial(mailbox.publish_metrics, world.rank) if settings.telemetry.port != 0 else None
    launch = Launch(
        config["launched_at_s"], mailbox.restart_reason, _node_is_draining, publish=publish
    )
    with _listening(mailbox, world, launch.save_requested):
        return train(run, settings, world, device, _report, launch)


def threads_per_worker(workers_here: int) -> int:
    """torch threads of one worker, so that all workers of a machine share its cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


@contextlib.contextmanager
def _listening(
    mailbox: Mailbox, world: ProcessWorld, save_requested: threading.Event
) -> Iterator[None]:
    """Worker 0 listens: it saves alone, and the others learn of a stop with the sums."""
    if world.rank != 0:
        yield
        return
    mailbox.report_placement_group()
    listen = partial(mailbox.listen, world.request_stop, save_requested.set)
    with in_background(listen, "mailbox"):
        yield


def _report(images: int, figures: Figures) -> None:
    """Tell Ray of a checkpoint's figures: its dashboard and Ray Tune see them."""
    ray.train.report({**figures, "images_seen": images})


def _node_is_draining() -> bool:
    """Is a worker's node about to be taken away? A barrier: every worker must ask."""
    return ray.train.get_preemption_info() is not None

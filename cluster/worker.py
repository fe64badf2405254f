"""What runs inside a Ray Train worker: set the machine up, then the loop."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray.train
import ray.train.torch
import torch

from aalnet.errors import AalnetError
from aalnet.evaluation import Figures
from aalnet.settings import parse_settings
from cluster.loop import train
from cluster.runs import Run
from cluster.store import open_store
from cluster.world import current_world


def work(config: dict[str, Any]) -> None:
    """Entry point of every worker; `config` is plain data made by the launcher."""
    with contextlib.suppress(FileNotFoundError):
        os.chdir(config["working_folder"])  # so that relative data paths mean the same here
    context = ray.train.get_context()
    torch.set_num_threads(threads_per_worker(context.get_local_world_size()))
    run = Run(open_store(config["storage"]), config["run"])
    settings = parse_settings(config["settings"])
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    train(run, settings, current_world(), device, _report)


def threads_per_worker(workers_here: int) -> int:
    """torch threads of one worker, so that all workers of a machine share its cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


def _report(figures: Figures) -> None:
    """Tell Ray of a checkpoint's figures: its dashboard and Ray Tune see them."""
    ray.train.report(dict(figures))


def own_error(failure: BaseException) -> AalnetError | None:
    """The error of ours inside what Ray raised, if it is one of ours."""
    seen: set[int] = set()
    waiting: list[Any] = [failure]
    while waiting:
        error = waiting.pop()
        if isinstance(error, AalnetError):
            return error
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        waiting += [error.__cause__, getattr(error, "cause", None)]
        waiting += [getattr(error, "_base_exc", None), getattr(error, "controller_failure", None)]
        waiting += list(getattr(error, "worker_failures", {}).values())
    return None

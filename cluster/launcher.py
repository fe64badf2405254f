"""Starts a run: decides workers and device, joins or starts Ray, and runs Ray Train.

The only module that starts Ray. `--workers 0` trains in this process, without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from aalnet.errors import AalnetError, ConfigError
from aalnet.settings import Settings
from cluster.loop import train
from cluster.runs import Run
from cluster.world import ProcessWorld

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of workers would come out twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative data paths keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class ClusterError(AalnetError):
    """Ray, or a worker's machine, failed."""


@dataclass(frozen=True)
class Placement:
    """Where a run trains: 0 workers mean this process."""

    workers: int
    device: str
    where: str


def place(settings: Settings, gpus: int, cpus: int, where: str) -> Placement:
    """Workers and device for what a machine or cluster has.

    Raises:
        ConfigError: more is asked for than there is.
    """
    wanted, device = settings.run.workers, settings.run.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError(f"run.device is cuda, but {where} has no GPU; set run.device=cpu")
    available = gpus if device == "cuda" else cpus
    if wanted == "auto":
        return Placement(max(1, min(available, settings.data.batch_images)), device, where)
    if device == "cuda" and wanted > gpus:
        raise ConfigError(
            f"run.workers {wanted} needs as many GPUs, {where} has {gpus}; lower --workers or "
            "set run.device=cpu"
        )
    return Placement(wanted, device, where)


def place_here(settings: Settings) -> Placement:
    """Placement on this machine alone."""
    cpus = len(os.sched_getaffinity(0))
    return place(settings, torch.cuda.device_count(), cpus, "this machine")


@contextlib.contextmanager
def connected(settings: Settings, address: str | None) -> Iterator[Placement]:
    """A Ray cluster for the run: the one at `address`, or a local one, stopped at the end.

    Raises:
        ClusterError: the cluster cannot be reached.
        ConfigError: it cannot hold the run.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
    import ray  # takes seconds: nothing that fails before needs it

    here = place_here(settings)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        else:
            cpus = max(here.workers, len(os.sched_getaffinity(0)))
            ray.init("local", num_cpus=cpus, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(f"{where} cannot be reached: {reason}; try `aalnet doctor`") from error
    try:
        if not address:
            yield here
            return
        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        placement = place(settings, gpus, cpus, f"the Ray cluster at {address}")
        if placement.workers > cpus:
            raise ConfigError(
                f"{placement.workers} workers need as many CPUs, {placement.where} has {cpus}; "
                "lower --workers"
            )
        yield placement
    finally:
        ray.shutdown()


def train_with_ray(run: Run, settings: Settings, placement: Placement) -> None:
    """Run the loop on Ray Train workers until it ends.

    Raises:
        AalnetError: what a worker raised, or ClusterError for a failure of the machinery.
    """
    from ray.train import ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import (
        FailureConfig,
        RunConfig,
    )  # as ray.train has them at run time

    from cluster.worker import own_error, work

    on_gpu = placement.device == "cuda"
    scratch = f"{run.uri}/.ray/{int(time.time())}"  # Ray's own records; ours are elsewhere
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "storage": run.store.uri,
            "run": run.name,
            "settings": settings.to_dict(),
            "working_folder": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(num_workers=placement.workers, use_gpu=on_gpu),
        run_config=RunConfig(  # type: ignore[arg-type]  # ray.train has the v1 class for checkers
            name=run.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
            worker_runtime_env={"env_vars": QUIET},
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        ours = own_error(error)
        if ours is not None:
            raise ours from None
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise ClusterError(
            f"training stopped: {reason.strip()}; the same command goes on from the last checkpoint"
        ) from error
    finally:
        shutil.rmtree(f"{run.uri}/.ray", ignore_errors=True)


def train_here(run: Run, settings: Settings, placement: Placement) -> None:
    """Run the loop in this process: `--workers 0`."""
    train(run, settings, ProcessWorld(), torch.device(placement.device), lambda figures: None)

"""Starts a run: decides workers and device, joins or starts Ray, and runs Ray Train.

The only module that starts Ray. `--workers 0` trains in this process, without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aalnet.errors import AalnetError, ConfigError
from aalnet.settings import Settings
from cluster.loop import train
from cluster.runs import Record, Run
from cluster.world import ProcessWorld

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

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
            _require_listener(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        else:
            cpus = max(here.workers, len(os.sched_getaffinity(0)))
            ray.init("local", num_cpus=cpus, log_to_driver=False, configure_logging=False)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
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


def _require_listener(address: str) -> None:
    """Raises OSError where nobody listens; ray.init would try for many minutes, and loudly."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def train_with_ray(run: Run, settings: Settings, placement: Placement) -> None:
    """Run the loop on Ray Train workers until it ends.

    Raises:
        AalnetError: what a worker raised, or ClusterError for a failure of the machinery.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    from cluster.worker import own_error

    try:
        _trainer(run, settings, placement).fit()
    except (TrainingFailedError, RayError) as error:
        ours = own_error(error)
        if ours is None:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
            ours = ClusterError(
                f"training stopped: {reason}; the same command goes on from the last checkpoint"
            )
        _log_failure(run, str(ours))
        raise ours from error
    except SystemExit:  # how Ray's handler of Ctrl-C ends, once the workers are stopped
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray leaves its own there
        shutil.rmtree(f"{run.uri}/.ray", ignore_errors=True)


def _trainer(run: Run, settings: Settings, placement: Placement) -> TorchTrainer:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api import config  # the classes that ray.train has at run time

    from cluster.worker import work

    on_gpu = placement.device == "cuda"
    return TorchTrainer(
        work,
        train_loop_config={
            "storage": run.store.uri,
            "run": run.name,
            "settings": settings.to_dict(),
            "working_folder": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(num_workers=placement.workers, use_gpu=on_gpu),
        run_config=config.RunConfig(  # type: ignore[arg-type]  # typed with the older class
            name=run.name,
            storage_path=f"{run.uri}/.ray/{int(time.time())}",  # Ray's own records, not ours
            failure_config=config.FailureConfig(max_failures=0, controller_failure_limit=3),
            worker_runtime_env={"env_vars": QUIET},
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
    )


def _log_failure(run: Run, error: str) -> None:
    """Close the run's log where worker 0 could not: it died, or another worker failed first."""
    records = run.records()
    if records and records[-1]["kind"] != "end":
        seconds = records[-1]["time_s"] - _last_start_s(records)
        run.log({"kind": "end", "images": records[-1]["images"], "status": "failed",
                 "train_seconds": seconds, "error": error})  # fmt: skip


def _last_start_s(records: list[Record]) -> float:
    return float(next(r["time_s"] for r in reversed(records) if r["kind"] == "start"))


def train_here(run: Run, settings: Settings, placement: Placement) -> None:
    """Run the loop in this process: `--workers 0`."""
    train(run, settings, ProcessWorld(), torch.device(placement.device), lambda figures: None)

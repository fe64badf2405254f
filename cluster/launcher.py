"""Starts a run: decides workers and device, joins or starts Ray, and runs Ray Train.

The only module that starts Ray. `--workers 0` trains in this process, without it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aalnet.errors import AalnetError, ConfigError
from aalnet.settings import Settings
from cluster.keeper import Launch
from cluster.loop import train
from cluster.policy import Cause, Streak, newest_images
from cluster.runs import Record, Run
from cluster.stop import Stop
from cluster.store import StoreError
from cluster.world import ProcessWorld

if TYPE_CHECKING:
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    from cluster.survival import Mail

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of workers would come out twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative data paths keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a dead worker is found within about two
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # then with fewer workers, or again
}
FORWARDED = ("AWS_", "GLOO_", "NCCL_")  # where the storage is; which network to use
RESIZE_EVERY_S = 8.0  # an elastic run looks so often whether there are more machines
TEARDOWN_S = 10.0  # for Ray to end its processes, after the grace period
POLL_S = 0.2


class ClusterError(AalnetError):
    """Ray, or a worker's machine, failed."""


@dataclass(frozen=True)
class Placement:
    """Where a run trains: 0 workers mean this process."""

    workers: int
    device: str
    where: str
    fewest: int | None = None  # an elastic run goes on with so many; None: `workers` are fixed
    at_s: float = field(default_factory=time.time, compare=False)  # the launch, since the epoch


def place(settings: Settings, gpus: int, cpus: int, where: str) -> Placement:
    """Workers and device for what a machine or cluster has.

    Raises:
        ConfigError: more is asked for than there is.
    """
    wanted, device = settings.run.worker_range, settings.run.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError(f"run.device is cuda, but {where} has no GPU; set run.device=cpu")
    available = gpus if device == "cuda" else cpus
    if wanted is None:
        return Placement(max(1, min(available, settings.data.batch_images)), device, where)
    fewest, most = wanted
    if device == "cuda" and fewest > gpus:
        raise ConfigError(
            f"run.workers {settings.run.workers} needs as many GPUs, {where} has {gpus}; lower "
            "--workers or set run.device=cpu"
        )
    elastic = isinstance(settings.run.workers, str)
    return Placement(most, device, where, fewest if elastic else None)


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
        token = "is RAY_AUTH_TOKEN set as it is there? " if address else ""
        told = f"{where} cannot be reached: {reason}; {token}try `aalnet doctor`"
        raise ClusterError(told) from error
    try:
        if not address:
            yield here
            return
        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        placement = place(settings, gpus, cpus, f"the Ray cluster at {address}")
        needed = placement.workers if placement.fewest is None else placement.fewest
        if needed > cpus:
            raise ConfigError(
                f"{needed} workers need as many CPUs, {placement.where} has {cpus}; lower --workers"
            )
        yield placement
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises OSError where nobody listens; ray.init would try for many minutes, and loudly."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def train_with_ray(run: Run, settings: Settings, placement: Placement, stop: Stop) -> str:
    """Run the loop on Ray Train workers until it ends; gives `finished` or `stopped`.

    Raises:
        AalnetError: what a worker raised, or ClusterError for a failure of the machinery.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    from cluster.survival import Mail, message_of, own_error

    mail, streak = Mail(uuid.uuid4().hex), Streak(settings.failures)
    while True:
        try:
            return _attempt(run, settings, placement, mail, stop)
        except TrainingFailedError as error:
            ours = own_error(error)
            reason = message_of(error)
        except RayError as error:  # Ray Train's controller died, and its workers with it
            ours, reason = None, f"the controller died: {message_of(error)}"
            decision = streak.failed(Cause.CRASH, newest_images(run))
            if decision.retry and stop.by is None:
                mail.release_group()
                mail.tell_failure(Cause.CRASH, f"{reason} ({decision.reason})")
                continue
        told = f"training stopped: {reason}; the same command goes on from the last checkpoint"
        ours = ours or ClusterError(told)
        _log_failure(run, str(ours))
        raise ours


def _attempt(run: Run, settings: Settings, placement: Placement, mail: Mail, stop: Stop) -> str:
    with tempfile.TemporaryDirectory(prefix="aalnet-ray-", ignore_cleanup_errors=True) as folder:
        trainer = _trainer(run, settings, placement, mail.launch, folder)
        fitting: Future[str] = Future()
        # Not in the main thread: there Ray would put a handler of its own in place of ours.
        threading.Thread(target=_fit, args=(trainer, fitting), name="fit", daemon=True).start()
        return _wait(fitting, mail.ask_to_stop, settings.failures.grace_s, stop)


def _fit(trainer: TorchTrainer, fitting: Future[str]) -> None:
    try:
        result: Any = trainer.fit()  # of Train v2, whatever the annotation says
        fitting.set_result(str(result.return_value))
    except BaseException as error:  # noqa: BLE001, raised again where the result is asked for
        fitting.set_exception(error)


def _wait(fitting: Future[str], ask_to_stop: Callable[[], None], grace_s: float, stop: Stop) -> str:
    """The status that training ends with. A stop that takes too long is an error."""
    asked = threading.Event()
    stop.ask(asked.set)
    end_s = math.inf
    try:
        while not fitting.done() and time.monotonic() < end_s:
            if asked.is_set() and end_s == math.inf:
                ask_to_stop()
                end_s = time.monotonic() + grace_s + TEARDOWN_S
            with contextlib.suppress(TimeoutError):
                fitting.exception(timeout=POLL_S)
    finally:
        stop.ask(None)
    if not fitting.done():
        raise ClusterError(
            f"the workers did not stop within {grace_s + TEARDOWN_S:.0f} s; the same command goes "
            "on from the last checkpoint"
        )
    return fitting.result()


def _trainer(
    run: Run, settings: Settings, placement: Placement, launch: str, folder: str
) -> TorchTrainer:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import RunConfig, ScalingConfig  # as ray.train has at run time

    from cluster.survival import SurvivingTrainer
    from cluster.worker import work

    on_gpu = placement.device == "cuda"
    workers = placement.workers
    return SurvivingTrainer(
        work,
        train_loop_config={
            "storage": run.store.uri,
            "run": run.name,
            "settings": settings.to_dict(),
            "working_folder": str(Path.cwd()),
            "launch": launch,
            "launched_at_s": placement.at_s,
        },
        scaling_config=ScalingConfig(
            num_workers=workers if placement.fewest is None else (placement.fewest, workers),
            use_gpu=on_gpu,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=folder,  # Ray's own records, of no use to us
            worker_runtime_env={"env_vars": QUIET | forwarded()},
        ),
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo",
            timeout_s=settings.failures.process_group_timeout_s,
        ),
    )


def forwarded() -> dict[str, str]:
    """Variables of this process that workers on other machines need too."""
    return {key: value for key, value in os.environ.items() if key.startswith(FORWARDED)}


def _log_failure(run: Run, error: str) -> None:
    """Close the run's log where worker 0 could not: it died, or another worker failed first."""
    with contextlib.suppress(StoreError):  # the error itself is raised to the user
        records = run.records()
        if records and records[-1]["kind"] != "end":
            seconds = records[-1]["time_s"] - _last_start_s(records)
            run.log({"kind": "end", "images": records[-1]["images"], "status": "failed",
                     "train_seconds": seconds, "error": error})  # fmt: skip


def _last_start_s(records: list[Record]) -> float:
    return float(next(r["time_s"] for r in reversed(records) if r["kind"] == "start"))


def train_here(run: Run, settings: Settings, placement: Placement, stop: Stop) -> str:
    """Run the loop in this process: `--workers 0`."""
    world = ProcessWorld()

    def ask() -> None:
        world.stop_wished = True

    stop.ask(ask)
    try:
        launch = Launch(placement.at_s)
        return train(
            run, settings, world, torch.device(placement.device), lambda figures: None, launch
        )
    finally:
        stop.ask(None)

"""Starts a run: decides workers and device, joins or starts Ray, and runs Ray Train.

`--workers 0` trains in this process, without it.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aalnet.errors import ConfigError
from aalnet.settings import Settings
from cluster.launch.ray_session import QUIET, ClusterError, forwarded, ray_session
from cluster.runs.run import Run
from cluster.storage.fenced import fence_of
from cluster.storage.store import StoreError
from cluster.telemetry.run_metrics import exported
from cluster.training.loop import train
from cluster.training.policy import FailureCause, FailureStreak, newest_images
from cluster.training.recorder import Launch, Report
from cluster.training.stop import Stop
from cluster.training.world import ProcessWorld

if TYPE_CHECKING:
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    from cluster.launch.mailbox import Mailbox

RESIZE_EVERY_S = 8.0  # an elastic run looks so often whether there are more machines
TEARDOWN_S = 10.0  # for Ray to end its processes, after the grace period
POLL_S = 0.2


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
        ConfigError: the settings need more than there is.
    """
    workers, device = settings.run.worker_range, settings.run.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError(f"run.device is cuda, but {where} has no GPU; set run.device=cpu")
    available = gpus if device == "cuda" else cpus
    if workers is None:
        return Placement(max(1, min(available, settings.data.batch_images)), device, where)
    fewest, most = workers
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
    here = place_here(settings)
    cpus_here = max(here.workers, len(os.sched_getaffinity(0)))
    with ray_session(address, cpus_here):
        if not address:
            yield here
            return
        import ray  # in the session, which has imported it

        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        placement = place(settings, gpus, cpus, f"the Ray cluster at {address}")
        needed = placement.workers if placement.fewest is None else placement.fewest
        if needed > cpus:
            raise ConfigError(
                f"{needed} workers need as many CPUs, {placement.where} has {cpus}; lower --workers"
            )
        yield placement


def train_with_ray(run: Run, settings: Settings, placement: Placement, stop: Stop) -> str:
    """Run the loop on Ray Train workers until it ends; gives `finished` or `stopped`.

    Raises:
        AalnetError: what a worker raised, or ClusterError for a failure of the machinery.
    """
    from cluster.launch.mailbox import Mailbox, mailbox_server

    _server = mailbox_server()  # lives while it is held
    mailbox = Mailbox(uuid.uuid4().hex)
    metrics = mailbox.worker_metrics
    with exported(run.name, settings, placement.device, placement.workers, metrics):
        return _survive(run, settings, placement, mailbox, stop)


def _survive(
    run: Run, settings: Settings, placement: Placement, mailbox: Mailbox, stop: Stop
) -> str:
    """Train, and again where Ray Train's controller has died: nothing else retries that."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    from cluster.launch.failures import message_of, project_error

    streak = FailureStreak(settings.failures)
    while True:
        try:
            return _attempt(run, settings, placement, mailbox, stop)
        except TrainingFailedError as error:
            ours = project_error(error)
            reason = message_of(error)
        except RayError as error:  # the controller died, and its workers with it
            ours, reason = None, f"the controller died: {message_of(error)}"
            decision = streak.failed(FailureCause.CRASH, newest_images(run))
            if decision.retry and stop.by is None:
                mailbox.remove_placement_group()
                mailbox.report_failure(FailureCause.CRASH, f"{reason} ({decision.reason})")
                continue
        advice = f"training stopped: {reason}; the same command goes on from the last checkpoint"
        ours = ours or ClusterError(advice)
        with contextlib.suppress(StoreError):  # worker 0 may have died before it could say so
            run.close_log("failed", str(ours))
        raise ours


def _attempt(
    run: Run, settings: Settings, placement: Placement, mailbox: Mailbox, stop: Stop
) -> str:
    with tempfile.TemporaryDirectory(prefix="aalnet-ray-", ignore_cleanup_errors=True) as folder:
        trainer = _trainer(run, settings, placement, mailbox.launch, folder)
        fitting: Future[str] = Future()
        # Not in the main thread: there Ray would put a handler of its own in place of ours.
        threading.Thread(target=_fit, args=(trainer, fitting), name="fit", daemon=True).start()
        return _wait(fitting, mailbox.request_stop, settings.failures.grace_s, stop)


def _fit(trainer: TorchTrainer, fitting: Future[str]) -> None:
    try:
        result: Any = trainer.fit()  # of Train v2, whatever the annotation says
        fitting.set_result(str(result.return_value))
    except BaseException as error:  # noqa: BLE001, raised again where the result is asked for
        fitting.set_exception(error)


def _wait(
    fitting: Future[str], request_stop: Callable[[], None], grace_s: float, stop: Stop
) -> str:
    """The status that training ends with. A stop that takes too long is an error."""
    stopping = threading.Event()
    stop.ask(stopping.set)
    end_s = math.inf
    try:
        while not fitting.done() and time.monotonic() < end_s:
            if stopping.is_set():
                request_stop()  # again and again: workers that start meanwhile hear of it too
                end_s = min(end_s, time.monotonic() + grace_s + TEARDOWN_S)
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

    from cluster.launch.survival import SurvivingTrainer
    from cluster.launch.worker import work

    on_gpu = placement.device == "cuda"
    workers = placement.workers
    return SurvivingTrainer(
        work,
        train_loop_config={
            "storage": run.store.uri,
            "run": run.name,
            "fence": fence_of(run.store),
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
            worker_runtime_env={"env_vars": QUIET | forwarded(os.environ)},
        ),
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo",
            timeout_s=settings.failures.process_group_timeout_s,
        ),
    )


def train_here(
    run: Run,
    settings: Settings,
    placement: Placement,
    stop: Stop,
    report: Report = lambda images, figures: None,
) -> str:
    """Run the loop in this process: `--workers 0`. `report` is told of every evaluation."""
    world = ProcessWorld()
    if settings.run.threads != "auto":
        torch.set_num_threads(settings.run.threads)
    stop.ask(world.request_stop)
    try:
        with exported(run.name, settings, placement.device, 1) as export:
            publish = None if settings.telemetry.port == 0 else partial(export.take, 0)
            launch = Launch(placement.at_s, publish=publish)
            device = torch.device(placement.device)
            return train(run, settings, world, device, report, launch)
    finally:
        stop.ask(None)

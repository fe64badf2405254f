"""Runs a campaign: checks that it fits, starts the study's actor, has Ray Tune make the jobs.

Ray Tune brings processes, resources and retries. What is tried and what came of it is the study's.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aalnet.errors import AalnetError, ConfigError
from cluster.launch.ray_internals import node_groups
from cluster.launch.ray_session import QUIET, ClusterError, forwarded, ray_session
from cluster.storage.fenced import fence_of
from cluster.training.stop import Stop
from tuner.campaign import Campaign
from tuner.capacity import Node, Slots, slots
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus

SHOW_S = 1.0
ANSWER_S = 120.0  # the study's process answers within this, or is given up
TEARDOWN_S = 30.0  # for trials to end, after the grace period of a stop
NO_ROOM_S = 1800.0  # a cluster may lack the machines for a trial for so long
LOOK_S = 30.0  # between two looks at them
TUNE_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a trial's workers are few, and end soon
}
Show = Callable[[CampaignStatus], None]


@contextlib.contextmanager
def connected(settings: CampaignSettings, address: str | None) -> Iterator[Slots]:
    """A Ray cluster for the campaign, and what fits on it.

    Raises:
        ClusterError: it cannot be reached.  ConfigError: no trial fits on it.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in TUNE_QUIET.items()})
    here = len(os.sched_getaffinity(0))
    if address is None:  # before Ray is started for nothing
        import torch

        slots(settings, [Node(here, torch.cuda.device_count())], "this machine")
    with ray_session(address, here):
        where = "this machine" if address is None else f"the Ray cluster at {address}"
        yield slots(settings, [*_nodes(), *_nodes_to_come()], where)


def _nodes() -> list[Node]:
    """What the living nodes have."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [_node(node["Resources"]) for node in nodes if node["Alive"]]


def _nodes_to_come() -> list[Node]:
    """What an autoscaler would start besides, as far as it tells."""
    alive = len(_nodes()) - 1  # without the head; they may be of any group
    most = [
        _node(group.resources) for group in node_groups() for _ in range(max(group.max_count, 0))
    ]
    return most[alive:]


def _node(resources: Any) -> Node:
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def run_campaign(
    campaign: Campaign, settings: CampaignSettings, place: Slots, stop: Stop, show: Show
) -> CampaignStatus:
    """Make all jobs of a campaign, or as many as until it is asked to stop.

    Raises:
        AalnetError: trials fail one after the other, the study cannot be kept, or the cluster has
            no room or failed. Trials under way save a checkpoint first.
    """
    from cluster.launch.mailbox import mailbox_server
    from tuner.jobs import make_jobs

    server = _study_server(campaign, settings)
    _mailbox = mailbox_server() if place.workers > 1 else None  # one for all nested trials
    show(_asked(server.status.remote()))
    failed: list[Exception] = []
    ended, stopping = threading.Event(), threading.Event()

    def work(folder: str) -> None:
        try:
            make_jobs(server, campaign.store.uri, place, str(Path.cwd()), folder)
        except Exception as error:  # noqa: BLE001, raised again below
            failed.append(error)
        finally:
            ended.set()

    def ask_to_stop() -> None:
        stopping.set()
        server.stop.remote()

    with tempfile.TemporaryDirectory(prefix="aalnet-tune-", ignore_cleanup_errors=True) as folder:
        # Not in the main thread: there Ray Tune would put a handler of its own in place of ours.
        threading.Thread(target=work, args=(folder,), name="tune", daemon=True).start()
        stop.ask(ask_to_stop)
        try:
            _watch(server, settings, place, stop, show, ended, stopping)
        finally:
            stop.ask(None)
    for error in failed:
        if isinstance(error, AalnetError):
            raise error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ClusterError(
            f"Ray Tune failed: {reason}; the same command goes on with what is there"
        ) from error
    status: CampaignStatus = _asked(server.status.remote())
    show(status)
    return status


def _study_server(campaign: Campaign, settings: CampaignSettings) -> Any:
    """The study's actor, on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tuner.server import StudyServer

    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = ray.remote(StudyServer).options(
        num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": environment()}
    )
    fence = fence_of(campaign.store)
    return actor.remote(
        campaign.store.uri, fence, campaign.name, campaign.study, settings.to_dict()
    )


def _watch(
    server: Any,
    settings: CampaignSettings,
    place: Slots,
    stop: Stop,
    show: Show,
    ended: threading.Event,
    stopping: threading.Event,
) -> None:
    """Shows how it stands until it has ended. What goes wrong stops it, and is raised then."""
    trouble: AalnetError | None = None
    room = Room(settings, place)
    grace_s = settings.run_settings({}).failures.grace_s + TEARDOWN_S
    end_s = math.inf
    while not ended.wait(SHOW_S) and time.monotonic() < end_s:
        if trouble is None:
            try:
                show(_asked(server.status.remote()))
                room.check()
            except AalnetError as error:
                trouble = error
                stop.now()
        if stopping.is_set():
            end_s = min(end_s, time.monotonic() + grace_s)
    if trouble is not None:
        raise trouble
    if not ended.is_set():
        raise ClusterError(
            f"the trials did not stop within {grace_s:.0f} s; the same command goes on from their "
            "last checkpoints"
        )


class Room:
    """Raises ClusterError where the cluster has lost the machines for a trial, for long."""

    def __init__(self, settings: CampaignSettings, place: Slots) -> None:
        self._settings, self._where = settings, place.where
        self._had_s = self._looked_s = time.monotonic()

    def check(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        with contextlib.suppress(ConfigError):
            slots(self._settings, _nodes(), self._where, at_once=1)
            self._had_s = now_s
        if now_s - self._had_s > NO_ROOM_S:
            raise ClusterError(
                f"{self._where} has had no room for a trial for {NO_ROOM_S / 60:.0f} minutes; the "
                "same command goes on once it has"
            )


def _asked(reply: Any) -> Any:
    """What the study's actor answers. Its own errors are raised as they are."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reply, timeout=ANSWER_S)
    except (RayError, AalnetError) as error:
        raise own_error(error) from error


def own_error(error: Exception) -> AalnetError:
    """The error of ours that is inside one of Ray's, or one that names it."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if isinstance(cause, AalnetError):
            return cause
        if isinstance(seen, AalnetError) and type(seen).__module__.partition(".")[0] != "ray":
            return seen
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
    return ClusterError(f"the study's process failed: {reason}; the same command goes on from here")


def environment() -> dict[str, str]:
    """What the processes of trials need."""
    return QUIET | TUNE_QUIET | forwarded(os.environ)

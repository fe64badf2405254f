"""The driver of a campaign: a cluster that it fits on, the study's actor, Ray Tune, their end.

study.py     decides what is tried next, and what is pruned
server.py    the study as a Ray actor
searcher.py  hands the study's runs to Ray Tune
trial.py     makes one run, in the process that Ray Tune gave it
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aalnet.errors import AalnetError, ConfigError
from cluster.launch.ray_internals import node_groups
from cluster.launch.ray_session import ClusterError, ray_session
from cluster.training.stop import Stop
from tuner.campaign import Campaign
from tuner.capacity import Node, Slots, find_slots
from tuner.server import TUNE_QUIET, answer_of, start_server
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus, StatusCallback

SHOW_S = 1.0  # between two looks at the study
TEARDOWN_S = 30.0  # for trials to end, after the grace period of a stop
NO_ROOM_S = 1800.0  # a cluster may lack the machines for a trial for so long
ROOM_CHECK_S = 30.0  # between two looks at them


def run_campaign(
    campaign: Campaign, settings: CampaignSettings, slots: Slots, stop: Stop, show: StatusCallback
) -> CampaignStatus:
    """Make all runs of a campaign, or as many as until it is asked to stop.

    Raises:
        AalnetError: trials fail one after the other, the study cannot be stored, or the cluster has
            no room or failed. Trials under way save a checkpoint first.
    """
    from cluster.launch.mailbox import mailbox_server
    from tuner.searcher import make_runs

    server = start_server(campaign, settings)
    _mailbox = mailbox_server() if slots.workers > 1 else None  # one for all nested trials
    show(answer_of(server.status.remote()))
    errors: list[Exception] = []
    done, stopping = threading.Event(), threading.Event()

    def work(folder: str) -> None:
        try:
            make_runs(server, campaign.store.uri, slots, str(Path.cwd()), folder)
        except Exception as error:  # noqa: BLE001, raised again below
            errors.append(error)
        finally:
            done.set()

    def ask_to_stop() -> None:
        stopping.set()
        server.stop.remote()

    with tempfile.TemporaryDirectory(prefix="aalnet-tune-", ignore_cleanup_errors=True) as folder:
        # Not in the main thread: there Ray Tune would put a handler of its own in place of ours.
        threading.Thread(target=work, args=(folder,), name="tune", daemon=True).start()
        stop.ask(ask_to_stop)
        try:
            _watch(server, settings, slots, stop, show, done, stopping)
        finally:
            stop.ask(None)
    for error in errors:
        if isinstance(error, AalnetError):
            raise error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ClusterError(
            f"Ray Tune failed: {reason}; the same command goes on with what is there"
        ) from error
    status: CampaignStatus = answer_of(server.status.remote())
    show(status)
    return status


def _watch(
    server: Any,
    settings: CampaignSettings,
    slots: Slots,
    stop: Stop,
    show: StatusCallback,
    done: threading.Event,
    stopping: threading.Event,
) -> None:
    """Show the status until Ray Tune is done. What goes wrong stops it, and is raised then."""
    trouble: AalnetError | None = None
    room = RoomCheck(settings, slots)
    grace_s = settings.run_settings({}).failures.grace_s + TEARDOWN_S
    end_s = math.inf
    while not done.wait(SHOW_S) and time.monotonic() < end_s:
        if trouble is None:
            try:
                show(answer_of(server.status.remote()))
                room.check()
            except AalnetError as error:
                trouble = error
                stop.now()
        if stopping.is_set():
            end_s = min(end_s, time.monotonic() + grace_s)
    if trouble is not None:
        raise trouble
    if not done.is_set():
        raise ClusterError(
            f"the trials did not stop within {grace_s:.0f} s; the same command goes on from their "
            "last checkpoints"
        )


class RoomCheck:
    """Notices that the cluster has lost the machines for a trial, for long."""

    def __init__(self, settings: CampaignSettings, slots: Slots) -> None:
        self._settings, self._where = settings, slots.where
        self._room_at_s = self._checked_at_s = time.monotonic()

    def check(self) -> None:
        """Look at the cluster's nodes now and then; raises ClusterError after NO_ROOM_S without."""
        now_s = time.monotonic()
        if now_s - self._checked_at_s < ROOM_CHECK_S:
            return
        self._checked_at_s = now_s
        with contextlib.suppress(ConfigError):
            find_slots(self._settings, _nodes(), self._where, at_once=1)
            self._room_at_s = now_s
        if now_s - self._room_at_s > NO_ROOM_S:
            raise ClusterError(
                f"{self._where} has had no room for a trial for {NO_ROOM_S / 60:.0f} minutes; the "
                "same command goes on once it has"
            )


@contextlib.contextmanager
def connected(settings: CampaignSettings, address: str | None) -> Iterator[Slots]:
    """A Ray cluster for the campaign, and what fits on it.

    Raises:
        ClusterError: it cannot be reached.  ConfigError: no trial fits on it.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in TUNE_QUIET.items()})
    cpus = len(os.sched_getaffinity(0))
    if address is None:  # before Ray is started for nothing
        import torch

        find_slots(settings, [Node(cpus, torch.cuda.device_count())], "this machine")
    with ray_session(address, cpus):
        where = "this machine" if address is None else f"the Ray cluster at {address}"
        yield find_slots(settings, [*_nodes(), *_nodes_to_come()], where)


def _nodes() -> list[Node]:
    """The living nodes' resources."""
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

"""Word by a Ray actor: what is sent arrives once, per launch, and costs no trial a resource."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.launch.mailbox import Mailbox, MailboxServer, mailbox_server
from cluster.launch.ray_session import ray_session

# Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


def test_entries_are_taken_once_and_by_launch() -> None:
    server = MailboxServer()
    server.put("a", "stop", True)
    server.put("b", "stop", False)
    assert server.take("a", "stop", "save") == [True, None]
    assert server.take("a", "stop") == [None]
    server.forget("a")
    assert server.entries("b") == {"stop": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_session(None, 1):
        yield


@pytest.mark.slow
def test_without_an_actor_words_are_lost_and_nothing_else(cluster: None) -> None:
    mailbox = Mailbox("nobody")
    mailbox.request_stop()
    assert mailbox.restart_reason() == {}
    with pytest.raises(ValueError, match="mailbox"):
        mailbox.worker_metrics(last=False)


@pytest.fixture(scope="module")
def session(cluster: None) -> Any:
    return mailbox_server()  # lives while pytest holds it


@pytest.mark.slow
def test_requests_reach_the_worker_that_listens(session: Any) -> None:
    Mailbox("launch").request_save()
    Mailbox("launch").request_stop()
    Mailbox("other").request_stop()
    calls: list[str] = []
    ended = threading.Event()

    def stop() -> None:
        calls.append("stop")
        ended.set()

    Mailbox("launch").listen(stop, lambda: calls.append("save"), ended)
    assert calls == ["save", "stop"]


@pytest.mark.slow
def test_the_reason_of_a_start(session: Any) -> None:
    mailbox = Mailbox("reasons")
    assert mailbox.restart_reason() == {}
    assert mailbox.restart_reason() == {"cause": "resize"}
    mailbox.report_failure("crash", "a worker died")
    assert mailbox.restart_reason() == {"cause": "crash", "error": "a worker died"}


@pytest.mark.slow
def test_metrics_stay_until_the_last_look(session: Any) -> None:
    mailbox = Mailbox("metrics")
    mailbox.request_stop()
    mailbox.publish_metrics(0, {"at_s": 1.0})
    mailbox.publish_metrics(1, {"at_s": 1.0})
    mailbox.publish_metrics(1, {"at_s": 2.0})
    assert mailbox.worker_metrics(last=False) == {0: {"at_s": 1.0}, 1: {"at_s": 2.0}}
    assert mailbox.worker_metrics(last=True) == {0: {"at_s": 1.0}, 1: {"at_s": 2.0}}
    assert mailbox.worker_metrics(last=False) == {}


@pytest.mark.slow
def test_one_actor_serves_a_job_from_inside_a_full_placement_group(session: Any) -> None:
    """As a nested trial's process asks for it, where nothing of the trial's is left."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=1, scheduling_strategy=inside)
    def trial() -> dict[int, dict[str, float]]:
        _server = mailbox_server()
        mailbox = Mailbox("nested")
        mailbox.report_placement_group()
        mailbox.publish_metrics(0, {"at_s": 1.0})
        return mailbox.worker_metrics(last=False)

    assert ray.get(trial.remote(), timeout=60) == {0: {"at_s": 1.0}}
    assert Mailbox("nested").worker_metrics(last=False) == {0: {"at_s": 1.0}}, "it outlives a trial"
    Mailbox("nested").remove_placement_group()
    with pytest.raises(ray.exceptions.RayError):
        ray.get(trial.remote(), timeout=10)
    remove_placement_group(group)

"""What failed, read from what Ray raises; and the decision in Ray's words."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from aalnet.errors import ConfigError, DataError, NonFiniteError
from cluster.launch.survival import cause_of, message_of, own_error
from cluster.runs.checkpoint import CheckpointTaken
from cluster.runs.saver import StorePatienceSpent
from cluster.storage.store import StoreError, StoreUnavailable
from cluster.training.policy import Cause

# Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

RESET = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")


def death(text: str, *, preempted: bool = False) -> Exception:
    """A worker that Ray found dead, as the controller hears of it."""
    error = RayActorError(None, text, False, preempted)
    return WorkerHealthCheckFailedError("worker health check failed", failure=error)


def group(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("workers failed", dict(enumerate(errors)))


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (group(death("its worker process has died"), RESET), Cause.CRASH),
        (group(RESET, RESET), Cause.CRASH),
        (group(death("The actor died because its node has died. Node Id: 1")), Cause.LOST_NODE),
        (group(RESET, death("node gone", preempted=True)), Cause.PREEMPTION),
        (group(NonFiniteError("entropy is nan"), RESET), Cause.NON_FINITE),
        (group(RESET, DataError("damaged")), Cause.MISTAKE),
        (group(ConfigError("eta")), Cause.MISTAKE),
        (group(StoreError("no answer"), RESET), Cause.STORAGE),
        (group(StoreUnavailable("no such bucket")), Cause.MISTAKE),
        (group(StorePatienceSpent("away for 900 s")), Cause.GIVEN_UP),
        (group(CheckpointTaken("another process")), Cause.CRASH),
        (group(TypeError("a bug"), RESET), Cause.BUG),
        (group(death("its worker process has died"), TypeError("of its peer")), Cause.CRASH),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), Cause.START),
        (ControllerError(RuntimeError("process group")), Cause.START),
        (ControllerError(KeyError("a bug of the controller")), Cause.BUG),
    ],
    ids=str,
)
def test_the_cause_of_a_failure(failure: TrainingFailedError, cause: Cause) -> None:
    assert cause_of(failure) is cause


def test_an_error_of_ours_is_found_however_deep() -> None:
    inner = DataError("row 3 is damaged")
    outer = RuntimeError("a task failed")
    outer.__cause__ = inner
    assert own_error(group(RESET, outer)) is inner
    assert own_error(ControllerError(outer)) is inner
    assert own_error(group(RESET)) is None
    assert message_of(group(outer)) == "row 3 is damaged"


def test_errors_in_a_circle_end() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert own_error(first) is None


def test_a_message_is_one_short_line_without_guesses() -> None:
    told = message_of(RayActorError(None, "It died.\nSome common causes include: x"))
    assert told == "It died."
    assert len(message_of(RuntimeError("x" * 5000))) <= 300
    assert message_of(RuntimeError()) == "RuntimeError"

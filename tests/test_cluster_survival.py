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
from cluster.launch.failures import cause_of, message_of, project_error
from cluster.runs.checkpoint import CheckpointTaken
from cluster.runs.saver import StorePatienceSpent
from cluster.storage.store import StoreError, StoreUnavailable
from cluster.training.policy import FailureCause

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
        (group(death("its worker process has died"), RESET), FailureCause.CRASH),
        (group(RESET, RESET), FailureCause.CRASH),
        (
            group(death("The actor died because its node has died. Node Id: 1")),
            FailureCause.LOST_NODE,
        ),
        (group(RESET, death("node gone", preempted=True)), FailureCause.PREEMPTION),
        (group(NonFiniteError("entropy is nan"), RESET), FailureCause.NON_FINITE),
        (group(RESET, DataError("damaged")), FailureCause.MISTAKE),
        (group(ConfigError("eta")), FailureCause.MISTAKE),
        (group(StoreError("no answer"), RESET), FailureCause.STORAGE),
        (group(StoreUnavailable("no such bucket")), FailureCause.MISTAKE),
        (group(StorePatienceSpent("away for 900 s")), FailureCause.GIVEN_UP),
        (group(CheckpointTaken("another process")), FailureCause.CRASH),
        (group(TypeError("a bug"), RESET), FailureCause.BUG),
        (group(death("its worker process has died"), TypeError("of its peer")), FailureCause.CRASH),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), FailureCause.START),
        (ControllerError(RuntimeError("process group")), FailureCause.START),
        (ControllerError(KeyError("a bug of the controller")), FailureCause.BUG),
    ],
    ids=str,
)
def test_the_cause_of_a_failure(failure: TrainingFailedError, cause: FailureCause) -> None:
    assert cause_of(failure) is cause


def test_an_error_of_ours_is_found_however_deep() -> None:
    inner = DataError("row 3 is damaged")
    outer = RuntimeError("a task failed")
    outer.__cause__ = inner
    assert project_error(group(RESET, outer)) is inner
    assert project_error(ControllerError(outer)) is inner
    assert project_error(group(RESET)) is None
    assert message_of(group(outer)) == "row 3 is damaged"


def test_errors_in_a_circle_end() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert project_error(first) is None


def test_a_message_is_one_short_line_without_guesses() -> None:
    told = message_of(RayActorError(None, "It died.\nSome common causes include: x"))
    assert told == "It died."
    assert len(message_of(RuntimeError("x" * 5000))) <= 300
    assert message_of(RuntimeError()) == "RuntimeError"

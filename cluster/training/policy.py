"""What a run survives: a pure decision from a failure's cause and the settings.

Retried: a killed worker, a lost or preempted node, a start that failed, a storage outage.
Never retried: what would fail in the same way again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aalnet.errors import AalnetError, NonFiniteError, UserError
from aalnet.settings import FailureSettings
from cluster.runs.checkpoint import CheckpointTaken
from cluster.runs.run import Run
from cluster.runs.saver import StorePatienceSpent
from cluster.storage.store import StoreError, StoreUnavailable


class FailureCause(StrEnum):
    """Why training was interrupted."""

    PREEMPTION = "preemption"  # the node was taken away, with or without notice
    LOST_NODE = "lost_node"
    CRASH = "crash"  # a worker's process died, or lost its peers
    START = "start"  # workers could not be placed, started or connected in time
    STORAGE = "storage"
    NON_FINITE = "non_finite"
    MISTAKE = "mistake"  # settings, data or a checkpoint that the user must mend
    BUG = "bug"  # an exception of the code itself
    GIVEN_UP = "given_up"  # the storage failed for longer than the settings allow


FINAL = frozenset(
    {FailureCause.NON_FINITE, FailureCause.MISTAKE, FailureCause.BUG, FailureCause.GIVEN_UP}
)


@dataclass(frozen=True)
class Decision:
    """Whether to go on from the last checkpoint, and the reason in words."""

    retry: bool
    reason: str


def decide(cause: FailureCause, failures: int, settings: FailureSettings) -> Decision:
    """Retry or not. `failures`: those that count in a row with no new checkpoint, this one too."""
    if cause in FINAL:
        return Decision(False, f"{cause} is not retried: it would fail in the same way again")
    if not counts(cause, settings):
        return Decision(True, f"{cause} does not count")
    if failures > settings.budget:
        return Decision(
            False,
            f"{failures} failures in a row with no new checkpoint between them, failures.budget is "
            f"{settings.budget}",
        )
    return Decision(True, f"{cause}, {failures} of {settings.budget} in a row")


def counts(cause: FailureCause, settings: FailureSettings) -> bool:
    """Does a failure of this cause use up the budget?"""
    return cause in settings.counted


class FailureStreak:
    """Failures in a row: a new checkpoint starts the count anew."""

    def __init__(self, settings: FailureSettings) -> None:
        self._settings = settings
        self._reached = -1
        self._failures = 0

    def failed(self, cause: FailureCause, newest_images: int | None) -> Decision:
        """Retry or not, with the newest checkpoint there is now; None: nobody can tell."""
        if newest_images is not None and newest_images > self._reached:
            self._reached, self._failures = newest_images, 0
        self._failures += counts(cause, self._settings)
        return decide(cause, self._failures, self._settings)


def newest_images(run: Run) -> int | None:
    """Images of the newest checkpoint, 0 without any; None while the storage fails."""
    try:
        return max(run.checkpoint_images(), default=0)
    except StoreError:
        return None


def cause_of_project_error(error: AalnetError) -> FailureCause:
    """The cause behind an error of the project's own."""
    if isinstance(error, NonFiniteError):
        return FailureCause.NON_FINITE
    if isinstance(error, StorePatienceSpent):
        return FailureCause.GIVEN_UP
    if isinstance(error, CheckpointTaken):  # the other writer's checkpoint is there to go on from
        return FailureCause.CRASH
    if isinstance(error, StoreError) and not isinstance(error, StoreUnavailable):
        return FailureCause.STORAGE
    return FailureCause.MISTAKE if isinstance(error, UserError) else FailureCause.BUG

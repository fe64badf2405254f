"""What failed, read from what Ray raises: its cause, its message, the project's error inside."""

from __future__ import annotations

from typing import Any

import torch

from aalnet.errors import AalnetError
from cluster.training.policy import FailureCause, cause_of_project_error

SHOWN = 300  # characters of an error's message
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, ValueError, ImportError,
        torch.OutOfMemoryError, NotImplementedError, ArithmeticError)  # fmt: skip


def cause_of(failure: BaseException) -> FailureCause:
    """Why training failed. Of several workers' errors the one that tells most decides."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

    if isinstance(failure, PreemptionError):
        return FailureCause.PREEMPTION
    if isinstance(failure, ControllerError):
        bug = isinstance(failure.controller_failure, BUGS)
        return FailureCause.BUG if bug else FailureCause.START  # workers did not start
    if (ours := project_error(failure)) is not None:
        return cause_of_project_error(ours)
    errors = list(failure.worker_failures.values()) if isinstance(failure, WorkerGroupError) else []
    chains = [_chain(error) for error in errors]
    deaths = [error for chain in chains for error in chain if isinstance(error, RayActorError)]
    if any(death.preempted for death in deaths):
        return FailureCause.PREEMPTION
    if any("node has died" in str(death) for death in deaths):  # the only sign that Ray gives
        return FailureCause.LOST_NODE
    if not deaths and any(isinstance(chain[-1], BUGS) for chain in chains):
        return FailureCause.BUG
    return FailureCause.CRASH


def message_of(failure: BaseException) -> str:
    """The error in one line."""
    if (ours := project_error(failure)) is not None:
        return str(ours)
    text = str(failure).partition("Some common causes include")[0]  # a list that never helps
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:SHOWN] if lines else type(failure).__name__


def project_error(failure: BaseException) -> AalnetError | None:
    """The project's own error inside what Ray raised, if there is one.

    Ray raises a subclass of it as well, made on the spot, whose message is a traceback.
    """
    ours = (error for error in _chain(failure) if isinstance(error, AalnetError))
    return next((error for error in ours if not type(error).__module__.startswith("ray.")), None)


def _chain(failure: BaseException) -> list[BaseException]:
    """The error and all errors it wraps, nearest first."""
    chain: list[BaseException] = []
    waiting: list[Any] = [failure]
    while waiting:
        error = waiting.pop(0)
        if not isinstance(error, BaseException) or any(error is other for other in chain):
            continue
        chain.append(error)
        # Of Ray's: a task's cause, a controller's failure, a dead worker's, a group's.
        inner = ("__cause__", "cause", "controller_failure", "health_check_failure")
        waiting += [getattr(error, name, None) for name in inner]
        waiting += list(getattr(error, "worker_failures", {}).values())
    return chain

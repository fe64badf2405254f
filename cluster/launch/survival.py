"""Ray's side of survival: what failed, whether Ray Train retries it, and word to the workers.

Ray Train's own policy retries whatever a worker raises, a NaN too; ours asks
cluster/training/policy.py.
Words between driver, controller and workers go through the cluster's key-value store.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ray._raylet import PlacementGroupID
from ray.exceptions import RayActorError
from ray.experimental import internal_kv
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)

from aalnet.errors import AalnetError
from aalnet.settings import parse_settings
from cluster.runs.run import Record, Run
from cluster.storage.location import open_store
from cluster.training.policy import Cause, Streak, cause_of_own, newest_images

LISTEN_S = 0.5  # between two looks for word
SHOWN = 300  # characters of an error's message
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, ValueError, ImportError,
        torch.OutOfMemoryError, NotImplementedError, ArithmeticError)  # fmt: skip


@dataclass(frozen=True)
class Mail:
    """Word from the driver and the controller to the workers of one launch."""

    launch: str

    def ask_to_stop(self) -> None:
        self._put("stop", "1")

    def tell_failure(self, cause: Cause, error: str) -> None:
        self._put("failure", json.dumps({"cause": cause, "error": error}))

    def ask_to_save(self) -> None:
        self._put("save", "1")

    def tell_group(self) -> None:
        """Called by worker 0: which placement group the workers live in."""
        if (group := get_current_placement_group()) is not None:
            self._put("group", group.id.hex())

    def release_group(self) -> None:
        """Free the workers' placement group, once the controller that made it is dead.

        Ray's own cleaner gives up where it sees two Ray clusters on one machine.
        """
        if (group := self._take("group")) is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group.decode()))))

    def past(self) -> Record:
        """Why workers start again: `cause` and, of a failure, `error`. Empty at the first start."""
        started, failure = self._take("started"), self._take("failure")
        self._put("started", "1")
        if failure:
            return dict(json.loads(failure))
        return {"cause": "resize"} if started else {}

    def listen(
        self, on_stop: Callable[[], None], on_save: Callable[[], None], done: threading.Event
    ) -> None:
        """Call what is asked for, when it is; returns when `done` is set."""
        while not done.wait(LISTEN_S):
            if self._take("save"):
                on_save()
            if self._take("stop"):
                on_stop()

    def tell_figures(self, worker: int, message: Record) -> None:
        """Called by every worker: its metrics, in place of those before."""
        self._put(f"figures/{worker}", json.dumps(message))

    def figures(self, last: bool) -> dict[int, Record]:
        """Every worker's metrics, by rank; nothing of them stays after the last look."""
        found, folder = {}, f"{self.launch}/figures/"
        for key in internal_kv._internal_kv_list(folder, namespace="aalnet"):
            if text := internal_kv._internal_kv_get(key, namespace="aalnet"):
                found[int(key.rpartition(b"/")[2])] = json.loads(text)
        if last:
            internal_kv._internal_kv_del(folder, del_by_prefix=True, namespace="aalnet")
        return found

    def _put(self, word: str, text: str) -> None:
        internal_kv._internal_kv_put(f"{self.launch}/{word}", text.encode(), namespace="aalnet")

    def _take(self, word: str) -> bytes | None:
        key = f"{self.launch}/{word}"
        found: bytes | None = internal_kv._internal_kv_get(key, namespace="aalnet")
        if found is not None:
            internal_kv._internal_kv_del(key, namespace="aalnet")
        return found


class SurvivingTrainer(TorchTrainer):
    """Ray's trainer with our failure policy, and resizing that loses no work."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        config: Any = self.train_loop_config
        parts["failure_policy"] = Policy(self.run_config.failure_config, config)
        scaling: Any = self.scaling_config  # typed with the older class
        if scaling.elasticity_enabled:
            parts["scaling_policy"] = SavingScaling(scaling, Mail(config["launch"]))
        return super()._initialize_and_run_controller(**parts)


class Policy(FailurePolicy):
    """Lives in Ray Train's controller, which asks it after every failure."""

    def __init__(self, failure_config: Any, config: dict[str, Any]) -> None:
        super().__init__(failure_config)
        self._streak = Streak(parse_settings(config["settings"]).failures)
        self._run = Run(open_store(config["storage"]), config["run"])
        self._mail = Mail(config["launch"])

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        cause = cause_of(training_failed_error)
        decision = self._streak.failed(cause, newest_images(self._run))
        self._mail.tell_failure(cause, f"{message_of(training_failed_error)} ({decision.reason})")
        return FailureDecision.RETRY if decision.retry else FailureDecision.RAISE


class SavingScaling(ElasticScalingPolicy):
    """Lives in the controller; before it resizes running workers, it has them save."""

    def __init__(self, scaling_config: Any, mail: Mail) -> None:
        super().__init__(scaling_config)
        self._mail = mail
        self._asked = False

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: WorkerGroupState,
        worker_group_status: WorkerGroupPollStatus,
    ) -> ScalingDecision:
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision) and not self._asked:
            self._asked = True
            self._mail.ask_to_save()
            return NoopDecision()  # the same is decided at the next look, on a fresh checkpoint
        if isinstance(decision, ResizeDecision):
            self._asked = False
        return decision


def cause_of(failure: TrainingFailedError) -> Cause:
    """Why training failed. Of several workers' errors the one that tells most decides."""
    if isinstance(failure, PreemptionError):
        return Cause.PREEMPTION
    if isinstance(failure, ControllerError):
        starts = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError, RuntimeError,
                  RayActorError, TimeoutError, ConnectionError)  # fmt: skip
        return Cause.START if isinstance(failure.controller_failure, starts) else Cause.BUG
    if (ours := own_error(failure)) is not None:
        return cause_of_own(ours)
    errors = list(failure.worker_failures.values()) if isinstance(failure, WorkerGroupError) else []
    inner = [e.health_check_failure if isinstance(e, WorkerHealthCheckFailedError) else e
             for e in errors]  # fmt: skip
    deaths = [error for error in inner if isinstance(error, RayActorError)]
    if any(death.preempted for death in deaths):
        return Cause.PREEMPTION
    if any("node has died" in str(death) for death in deaths):  # the only sign that Ray gives
        return Cause.LOST_NODE
    if not deaths and any(isinstance(_root(error), BUGS) for error in inner):
        return Cause.BUG
    return Cause.CRASH


def message_of(failure: BaseException) -> str:
    """The error in one line."""
    ours = own_error(failure)
    if ours is not None:
        return str(ours)
    text = str(failure).partition("Some common causes include")[0]  # a list that never helps
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:SHOWN] if lines else type(failure).__name__


def own_error(failure: BaseException) -> AalnetError | None:
    """The error of ours inside what Ray raised, if it is one of ours."""
    return next((e for e in _inside(failure) if isinstance(e, AalnetError)), None)


def _root(error: BaseException) -> BaseException:
    return _inside(error)[-1]


def _inside(failure: BaseException) -> list[BaseException]:
    """The error and all errors it wraps, nearest first."""
    seen: list[BaseException] = []
    waiting: list[Any] = [failure]
    while waiting:
        error = waiting.pop(0)
        if not isinstance(error, BaseException) or any(error is other for other in seen):
            continue
        seen.append(error)
        waiting += [error.__cause__, getattr(error, "cause", None)]
        waiting += [getattr(error, "_base_exc", None), getattr(error, "controller_failure", None)]
        waiting += list(getattr(error, "worker_failures", {}).values())
    return seen

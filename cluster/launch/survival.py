"""Ray's trainer with our decisions: what is retried, and a checkpoint before workers are resized.

Ray Train's own policy retries whatever a worker raises, a NaN too; ours asks
cluster/training/policy.py.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from aalnet.settings import parse_settings
from cluster.launch.failures import cause_of, message_of
from cluster.launch.mailbox import Mailbox
from cluster.launch.ray_internals import (
    ElasticScalingPolicy,
    FailureDecision,
    FailurePolicy,
    NoopDecision,
    ResizeDecision,
)
from cluster.runs.run import Run
from cluster.storage.location import open_store
from cluster.training.policy import FailureStreak, newest_images


class SurvivingTrainer(TorchTrainer):
    """Ray's trainer with our failure policy, and resizing that loses no work."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        config: Any = self.train_loop_config
        parts["failure_policy"] = RetryPolicy(self.run_config.failure_config, config)
        scaling: Any = self.scaling_config  # typed with the older class
        if scaling.elasticity_enabled:
            parts["scaling_policy"] = SaveBeforeResize(scaling, Mailbox(config["launch"]))
        return super()._initialize_and_run_controller(**parts)


class RetryPolicy(FailurePolicy):
    """Lives in Ray Train's controller, which asks it after every failure."""

    def __init__(self, failure_config: Any, config: dict[str, Any]) -> None:
        super().__init__(failure_config)
        self._streak = FailureStreak(parse_settings(config["settings"]).failures)
        self._run = Run(open_store(config["storage"]), config["run"])
        self._mailbox = Mailbox(config["launch"])

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Retry or not, and word of it to the workers that start next."""
        cause = cause_of(training_failed_error)
        decision = self._streak.failed(cause, newest_images(self._run))
        error = f"{message_of(training_failed_error)} ({decision.reason})"
        self._mailbox.report_failure(cause, error)
        return FailureDecision.RETRY if decision.retry else FailureDecision.RAISE


class SaveBeforeResize(ElasticScalingPolicy):
    """Lives in the controller; before it resizes running workers, it has them save."""

    def __init__(self, scaling_config: Any, mailbox: Mailbox) -> None:
        super().__init__(scaling_config)
        self._mailbox = mailbox
        self._save_requested = False

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Ray's decision; a resize only at the second look, on a fresh checkpoint."""
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if not isinstance(decision, ResizeDecision):
            return decision
        self._save_requested = not self._save_requested
        if self._save_requested:
            self._mailbox.request_save()
            return NoopDecision()
        return decision

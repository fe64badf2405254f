"""Every private name of Ray that the project uses, with the reason. No other module uses one.

They are those of Ray 2.60. tests/test_cluster_ray_internals.py says what another Ray has changed.
Each is imported when it is first used: `aalnet submit` goes without ray[train].
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerGroupStartupTimeoutError,
        WorkerHealthCheckFailedError,
    )
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

__all__ = [  # what a module may import of here, besides the three functions
    "ElasticScalingPolicy", "FailureDecision", "FailurePolicy", "NoopDecision", "ResizeDecision",
    "WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckFailedError",
]  # fmt: skip


class Internal(NamedTuple):
    """Where a private name is, and what we call, override or read of it, with its parameters."""

    module: str
    uses: dict[str, tuple[str, ...]]


_TRAIN = "ray.train.v2._internal"
_PACKAGES = "ray._private.runtime_env.packaging"
INTERNALS = {
    # Ray's public FailureConfig retries whatever a worker raises, a NaN and a wrong setting too.
    "FailurePolicy": Internal(
        f"{_TRAIN}.execution.failure_handling",
        {"__init__": ("failure_config",), "make_decision": ("training_failed_error",)},
    ),
    "FailureDecision": Internal(f"{_TRAIN}.execution.failure_handling", {"RETRY": (), "RAISE": ()}),
    # Ray resizes running workers at once; what they did since their last checkpoint would be lost.
    "ElasticScalingPolicy": Internal(
        f"{_TRAIN}.execution.scaling_policy.elastic",
        {
            "__init__": ("scaling_config",),
            "make_decision_for_running_worker_group": ("worker_group_state", "worker_group_status"),
        },
    ),
    "ResizeDecision": Internal(f"{_TRAIN}.execution.scaling_policy", {}),
    "NoopDecision": Internal(f"{_TRAIN}.execution.scaling_policy", {"__init__": ()}),
    # The two policies have no other way into Ray's trainer, which hands them on to its controller.
    "DataParallelTrainer": Internal(
        "ray.train.v2.api.data_parallel_trainer",
        {"_initialize_and_run_controller": ("controller_init_kwargs",)},
    ),
    "TrainController": Internal(
        f"{_TRAIN}.execution.controller", {"__init__": ("scaling_policy", "failure_policy")}
    ),
    # Nothing public tells workers that did not start, or have died, from an error in the code.
    "WorkerGroupStartupFailedError": Internal(f"{_TRAIN}.exceptions", {}),
    "WorkerGroupStartupTimeoutError": Internal(f"{_TRAIN}.exceptions", {}),
    "WorkerHealthCheckFailedError": Internal(
        f"{_TRAIN}.exceptions", {"__init__": ("message", "failure")}
    ),
    # An upload that the job server would refuse is told, with its largest parts, before it is made.
    "_dir_travel": Internal(
        _PACKAGES, {"__call__": ("path", "excludes", "handler", "include_gitignore")}
    ),
    "_get_excludes": Internal(_PACKAGES, {"__call__": ("path", "excludes")}),
    "get_runtime_env_default_excludes": Internal("ray._private.ray_constants", {"__call__": ()}),
    # The public `get_version` tells the version of the job server's API, not of Ray.
    "SubmissionClient": Internal(
        "ray.dashboard.modules.dashboard_sdk", {"_check_connection_and_version_with_url": ()}
    ),
    # Nothing public tells how many machines an autoscaler may add.
    "GlobalState": Internal("ray._private.state", {"get_cluster_config": ()}),
}


def __getattr__(name: str) -> Any:
    if name not in INTERNALS:
        raise AttributeError(f"{name} is not among the names of Ray in {__name__}")
    return getattr(importlib.import_module(INTERNALS[name].module), name)


def uploaded_paths(folder: Path) -> list[Path]:
    """What Ray packs of a job's folder, by its own rules (.rayignore, .gitignore)."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    paths: list[Path] = []
    by_default = _get_excludes(folder, get_runtime_env_default_excludes())
    _dir_travel(folder, [by_default], paths.append, include_gitignore=True)
    return paths


def server_version(client: JobSubmissionClient) -> str:
    """The Ray version of the job server's cluster; learnt when the client was made."""
    return str(client._server_ray_version)


def node_groups() -> list[Any]:
    """What an autoscaler may start: `resources` of one node and `max_count`; empty without one."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return [] if config is None else list(config.node_group_configs)

"""Every private name of Ray that the project uses, with the reason. No other module uses one.

They are those of Ray 2.60. tests/test_cluster_ray_internals.py says what another Ray has changed.
Train's are imported when first used: `aalnet submit` goes without ray[train].
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

__all__ = ["ElasticScalingPolicy", "FailureDecision", "FailurePolicy", "NoopDecision",
           "ResizeDecision"]  # fmt: skip

_EXECUTION = "ray.train.v2._internal.execution"
# The policies reach Ray's controller by cluster/launch/survival.py, which overrides
# `_initialize_and_run_controller` of Ray's trainer: it has no public argument for them.
TRAIN_MODULES = {
    # Ray's public FailureConfig retries whatever a worker raises, a NaN and a wrong setting too.
    "FailurePolicy": f"{_EXECUTION}.failure_handling",
    "FailureDecision": f"{_EXECUTION}.failure_handling",
    # Ray resizes running workers at once; what they did since their last checkpoint would be lost.
    "ElasticScalingPolicy": f"{_EXECUTION}.scaling_policy.elastic",
    "ResizeDecision": f"{_EXECUTION}.scaling_policy",
    "NoopDecision": f"{_EXECUTION}.scaling_policy",
}


def __getattr__(name: str) -> Any:
    if name not in TRAIN_MODULES:
        raise AttributeError(f"{name} is not among the private names of Ray in {__name__}")
    return getattr(importlib.import_module(TRAIN_MODULES[name]), name)


def uploaded_paths(folder: Path) -> list[Path]:
    """What Ray packs of a job's folder, by its own rules (.rayignore, .gitignore).

    Private, for an upload that is too large is refused with its largest parts, before it is made.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    paths: list[Path] = []
    by_default = _get_excludes(folder, get_runtime_env_default_excludes())
    _dir_travel(folder, [by_default], paths.append, include_gitignore=True)
    return paths


def server_version(client: JobSubmissionClient) -> str:
    """The Ray version of a job server's cluster; learnt when the client was made.

    Private, for the public `get_version` gives the version of the server's API.
    """
    return str(client._server_ray_version)


def node_groups() -> list[Any]:
    """What an autoscaler may start: `resources` of one node and `max_count`; empty without one.

    Private, for nothing public tells how many machines there may be.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    return [] if config is None else list(config.node_group_configs)

"""The private names of Ray that the project leans on are there, and take what we give them."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import ray

from cluster.launch.ray_internals import TRAIN_MODULES
from tests.support.tiny_runs import ROOT

# Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

TRAIN = "ray.train.v2"
PACKAGES = "ray._private.runtime_env.packaging"
# module, name in it, and the parameters that we give or are given
USES = [
    (TRAIN_MODULES["FailurePolicy"], "FailurePolicy", "failure_config"),
    (TRAIN_MODULES["FailurePolicy"], "FailurePolicy.make_decision", "training_failed_error"),
    (TRAIN_MODULES["FailureDecision"], "FailureDecision.RETRY", ""),
    (TRAIN_MODULES["FailureDecision"], "FailureDecision.RAISE", ""),
    (TRAIN_MODULES["ElasticScalingPolicy"], "ElasticScalingPolicy", "scaling_config"),
    (
        TRAIN_MODULES["ElasticScalingPolicy"],
        "ElasticScalingPolicy.make_decision_for_running_worker_group",
        "worker_group_state worker_group_status",
    ),
    (TRAIN_MODULES["ResizeDecision"], "ResizeDecision", "num_workers"),
    (TRAIN_MODULES["NoopDecision"], "NoopDecision", ""),
    (f"{TRAIN}._internal.execution.controller", "TrainController", "scaling_policy failure_policy"),
    (
        f"{TRAIN}.torch.torch_trainer",
        "TorchTrainer._initialize_and_run_controller",
        "controller_init_kwargs",
    ),
    (f"{TRAIN}._internal.exceptions", "WorkerHealthCheckFailedError", "message failure"),
    (PACKAGES, "_dir_travel", "path excludes handler include_gitignore"),
    (PACKAGES, "_get_excludes", "path excludes"),
    ("ray._private.ray_constants", "get_runtime_env_default_excludes", ""),
    ("ray._private.state", "state.get_cluster_config", ""),
]
PRIVATE = re.compile(r"\b_private\b|\b_internal\b|\b_raylet\b|internal_kv|_ray_version\b")


@pytest.mark.parametrize(("module", "name", "parameters"), USES)
def test_ray_has_it_as_we_use_it(module: str, name: str, parameters: str) -> None:
    told = f"Ray {ray.__version__} has no {module}.{name}: see cluster/launch/ray_internals.py"
    try:
        used = importlib.import_module(module)
        for part in name.split("."):
            used = getattr(used, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{told} ({error})")
    if parameters:
        takes = inspect.signature(used).parameters
        missing = set(parameters.split()) - takes.keys()
        assert not missing, f"{told} with {missing}; it takes {list(takes)}"


def test_the_trainer_hands_the_policies_to_its_controller() -> None:
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    assert {"scaling_policy=", "failure_policy="} <= {
        line.strip().partition("=")[0] + "="
        for line in inspect.getsource(TorchTrainer.fit).split("\n")
    }, "survival.py overrides what Ray's fit() gives its controller, and fit() is another now"


def test_the_job_client_keeps_its_servers_version() -> None:
    from ray.job_submission import JobSubmissionClient

    source = inspect.getsource(JobSubmissionClient._check_connection_and_version_with_url)
    assert "self._server_ray_version = " in source, "see ray_internals.server_version"


def test_no_other_module_uses_one() -> None:
    rooms = [Path(ROOT, room) for room in ("aalnet", "cluster", "deploy", "tuner")]
    modules = [path for room in rooms for path in room.rglob("*.py")]
    users = [
        str(path.relative_to(ROOT)) for path in modules if PRIVATE.search(path.read_text("utf-8"))
    ]
    assert users == ["cluster/launch/ray_internals.py"]

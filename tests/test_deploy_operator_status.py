"""States and pods from what controllers write, and what `aalnet deploy status` tells of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from deploy.operator.objects import Object
from deploy.operator.pods import problems
from deploy.operator.status import ControllerState as State
from deploy.operator.status import controller_state
from tests.support.kube_api import KubeApi
from tests.support.kube_deploy import JOB, TRAINER, deploy, event, good, job_status, pod

# States and pods, from what controllers write


def deployment(**status: Any) -> Object:
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2},
            "status": {"observedGeneration": 2, **status}}  # fmt: skip


FULL = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
QUOTA = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: aalnet"}


def job(deployment: str = "", ran: str = "", **more: str) -> Object:
    status = {"jobDeploymentStatus": deployment, "jobStatus": ran, **more}
    return {"kind": "RayJob", "metadata": {}, "status": {k: v for k, v in status.items() if v}}


def service(*conditions: tuple[str, str], observed: int = 1) -> Object:
    result = [{"type": kind, "status": status, "reason": kind} for kind, status in conditions]
    return {"kind": "RayService", "metadata": {"generation": 1},
            "status": {"observedGeneration": observed, "conditions": result}}  # fmt: skip


@pytest.mark.parametrize(
    ("item", "state"),
    [
        (job(), State("New", "going")),
        (job("Initializing"), State("Initializing", "going")),
        (job("Running", "RUNNING"), State("Running RUNNING", "going")),
        (job("Retrying", "FAILED", reason="AppFailed", message="exit 1"),
         State("Retrying FAILED", "going", "AppFailed: exit 1")),
        (job("Complete", "SUCCEEDED"), State("Complete SUCCEEDED", "done")),
        (job("Complete", "STOPPED"), State("Complete STOPPED", "failed")),
        (job("Failed", "FAILED", reason="DeadlineExceeded"),
         State("Failed FAILED", "failed", "DeadlineExceeded")),
        (job("ValidationFailed", message="name too long"),
         State("ValidationFailed", "failed", "name too long")),
        (deployment(**FULL), State("2/2 ready", "done")),
        (deployment(**FULL | {"observedGeneration": 1}), State("New", "going")),
        (deployment(**FULL | {"availableReplicas": 1}), State("1/2 ready, 2 new", "going")),
        (deployment(**FULL | {"replicas": 3}), State("2/2 ready, 2 new", "going")),
        (deployment(conditions=[QUOTA]), State("0/2 ready, 0 new", "going", QUOTA["message"])),
        (deployment(conditions=[LATE, QUOTA]), State("0/2 ready", "failed", QUOTA["message"])),
        (service(("Ready", "True")), State("Ready", "done")),
        (service(("Ready", "True"), ("UpgradeInProgress", "True")), State("Upgrading", "going")),
        (service(("Ready", "True"), observed=0), State("New", "going")),
        (service(("Ready", "False")), State("Ready", "going")),
        (service(), State("New", "going")),
    ],
)  # fmt: skip
def test_states(item: Object, state: State) -> None:
    assert controller_state(item) == state


def test_pods_that_were_out_of_memory_or_evicted() -> None:
    killed = {"name": "main", "state": {"running": {}},
              "lastState": {"terminated": {"reason": "OOMKilled"}}}  # fmt: skip
    pods = [
        {"metadata": {"name": "a"}, "status": {"containerStatuses": [killed]}},
        {"metadata": {"name": "b"}, "status": {"phase": "Failed", "reason": "Evicted",
                                               "message": "low on memory"}},
        {"metadata": {"name": "c", "deletionTimestamp": "x"}, "status": {"phase": "Failed",
                                                                         "reason": "Evicted"}},
    ]  # fmt: skip
    assert problems(pods, []) == [
        "a: main was out of memory and began again", "b: Evicted: low on memory",
    ]  # fmt: skip


# The command


def waiting_pod(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "main", "state": state}]}


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([pod("p", JOB, "trainer", status=waiting_pod("ImagePullBackOff", "Back-off pulling x"))],
         "its image cannot be had, ImagePullBackOff: Back-off pulling x"),
        ([pod("p", JOB, "trainer",
              status=waiting_pod("CreateContainerConfigError", 'secret "aalnet-s3" not found'))],
         'CreateContainerConfigError: secret "aalnet-s3" not found'),
        ([event(JOB, "FailedToCreateHeadPod",
                'pods "t-head" is forbidden: exceeded quota: aalnet, requested: pods=1')],
         "no quota: exceeded quota: aalnet, requested: pods=1"),
        ([pod("p", JOB, "trainer", status=waiting_pod("ContainerCreating", ""))], ""),
        ([event("somebody-elses", "FailedCreate", "exceeded quota: x")], ""),
    ],
    ids=["image", "secret", "quota", "creating", "others"],
)  # fmt: skip
def test_status_tells_why_it_waits(
    kube: KubeApi, objects: Sequence[dict[str, Any]], expected: str
) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    for item in objects:
        kube.objects.put(item)
    (row,) = json.loads(good("status", "trainer", "--json").stdout)
    assert "".join(row["why"]).endswith(expected)
    assert bool(row["why"]) is bool(expected)


def test_status_tells_what_kueue_says(kube: KubeApi) -> None:
    good("apply", "trainer", "--overlay", "kueue", "--image", "r.io/a:1", "--storage", "s3://b/p",
         "--yes", "--no-wait")  # fmt: skip
    job_status(kube, jobDeploymentStatus="Suspended")()
    uid = kube.objects.get("RayJob", "aalnet", JOB)["metadata"]["uid"]
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota"}
    kube.objects.put({
        "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload",
        "metadata": {"name": "w", "namespace": "aalnet", "ownerReferences": [{"uid": uid}]},
        "status": {"conditions": [condition]},
    })  # fmt: skip
    (row,) = json.loads(good("status", "--json").stdout)
    assert row["why"] == ["queued in aalnet: insufficient unused quota"]


def test_status_is_a_table_and_fails_with_the_job(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    job_status(kube, jobDeploymentStatus="Failed", reason="DeadlineExceeded")()
    result = deploy("status")
    assert result.exit_code == 1
    assert "RayJob/aalnet-trainer" in result.stdout
    assert "DeadlineExceeded" in result.stdout
    assert "nothing in elsewhere" in good("status", "-n", "elsewhere").stdout

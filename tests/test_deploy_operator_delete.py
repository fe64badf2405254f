"""What `aalnet deploy` deletes: a RayJob that must run anew, and what `delete` is asked to take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from aalnet.errors import UserError
from deploy.operator import execute
from deploy.operator.errors import TimedOut
from tests.support.kube_api import KubeApi
from tests.support.kube_deploy import DONE, TRAINER, fails, good

FAILED = {
    "jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 2",
}  # fmt: skip


def job(status: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda item: item.update(status=status)


def finalizer_removed_soon(kube: KubeApi) -> threading.Thread:
    """KubeRay: a RayJob that is being deleted goes when its cluster is gone."""

    def operator() -> None:
        while not kube.stopping.wait(0.02):
            for item in kube.objects.list("RayJob"):
                if item["metadata"].get("deletionTimestamp"):
                    kube.objects.edit(
                        "RayJob", item["metadata"]["name"],
                        lambda job: job["metadata"].update(finalizers=[]),
                    )  # fmt: skip

    thread = threading.Thread(target=operator, daemon=True)
    thread.start()
    return thread


def test_a_finished_job_is_left_alone(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    kube.objects.edit("RayJob", "aalnet-trainer", job(DONE))
    result = good(*TRAINER)  # asks nothing, waits for nothing
    assert "Complete SUCCEEDED" in result.stderr
    assert not kube.sent("DELETE")


@pytest.mark.parametrize(
    ("status", "extra", "why"),
    [
        (FAILED, (), "it has failed (AppFailed: Job entrypoint"),
        (DONE, ("--set", "run.images=20000"), "it is done, and would differ"),
        (
            {"jobDeploymentStatus": "Running"},
            ("--set", "run.seed=7"),
            "it runs with other settings",
        ),
    ],
)
def test_a_job_is_replaced(
    kube: KubeApi, status: dict[str, Any], extra: tuple[str, ...], why: str
) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    kube.objects.edit("RayJob", "aalnet-trainer", job(status))
    before = kube.objects.get("RayJob", "aalnet", "aalnet-trainer")["metadata"]["uid"]
    finalizer_removed_soon(kube)
    result = good(*TRAINER, *extra, "--yes", "--no-wait")
    assert f"RayJob/aalnet-trainer replaced: {why}" in result.stdout
    after = kube.objects.get("RayJob", "aalnet", "aalnet-trainer")
    assert after["metadata"]["uid"] != before
    assert "status" not in after
    (deletion,) = kube.sent("DELETE")
    assert deletion.body is not None
    assert deletion.body["preconditions"] == {"uid": before}
    order = [r.method for r in kube.requests if r.method != "GET" and "dryRun" not in r.query]
    assert order.index("DELETE") < len(order) - 1


def test_a_job_that_does_not_go_is_told(kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    kube.objects.edit("RayJob", "aalnet-trainer", job(FAILED))
    monkeypatch.setattr(execute.wait_until_deleted, "__defaults__", (0.1,))
    message = fails(TimedOut, *TRAINER, "--yes")
    assert "ray.io/rayjob-finalizer" in message
    assert TimedOut("").exit_code == 3


# Delete


def test_delete_takes_what_apply_made(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait", "--name", "faces")
    good(*TRAINER, "--yes", "--no-wait")
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "data": {}, "metadata": {
        "name": "faces-notes", "namespace": "aalnet", "labels": {
            "app.kubernetes.io/component": "trainer", "app.kubernetes.io/instance": "faces",
            "app.kubernetes.io/managed-by": "aalnet"}}}  # fmt: skip
    kube.objects.put(foreign)  # our labels, but not our hand
    finalizer_removed_soon(kube)
    result = good("delete", "trainer", "--name", "faces", "--yes")
    assert "ConfigMap/faces-notes stays" in result.stderr
    remaining = {name for name in kube.objects.names() if "faces" in name}
    assert remaining == {"ConfigMap/faces-notes"}
    assert {"Namespace/aalnet", "RayJob/aalnet-trainer"} <= kube.objects.names()
    assert "no trainer faces" in good("delete", "trainer", "--name", "faces", "--yes").stderr


def test_delete_asks_first(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    assert "--yes" in fails(UserError, "delete", "trainer")
    assert "RayJob/aalnet-trainer" in kube.objects.names()

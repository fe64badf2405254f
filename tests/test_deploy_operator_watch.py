"""`aalnet deploy` waits for a workload and follows its logs, through faults of the API server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from deploy.operator import wait
from deploy.operator.errors import KubernetesError, NotFound, TimedOut, Unreachable
from tests.support.kube_api import CUT, DROP, Fault, KubeApi
from tests.support.kube_deploy import DONE, JOB, RUNNING, TRAINER, fails, good, job_status, pod

Edit = Callable[[dict[str, Any]], None]


def script(kube: KubeApi, *acts: Callable[[], object], pause_s: float = 0.4) -> None:
    """Do one thing after another, as controllers would, once the RayJob is there."""

    def play() -> None:
        while "RayJob/aalnet-trainer" not in kube.objects.names():
            time.sleep(0.02)
        for act in acts:
            time.sleep(pause_s)
            act()

    threading.Thread(target=play, daemon=True).start()


# Waiting


def test_waits_for_a_job_with_progress(kube: KubeApi) -> None:
    submitter = pod("aalnet-trainer-xyz", JOB, "submitter", status=RUNNING)
    kube.logs["aalnet-trainer-xyz"] = [
        "2026-11-20T08:00:01.000000000Z images 3,600/14,400  120 images/s  eta 90s",
        "2026-11-20T08:00:02.000000000Z checkpoint at 3,600/14,400  4.1 MiB in 0.3s",
    ]
    script(
        kube,
        job_status(kube, jobDeploymentStatus="Initializing"),
        lambda: kube.objects.put(submitter),
        job_status(kube, jobDeploymentStatus="Running", jobStatus="RUNNING"),
        job_status(kube, **DONE),
    )
    result = good(*TRAINER, "--yes")
    assert "Initializing" in result.stderr
    assert "Running RUNNING  1/1 pods ready  images 3,600/14,400" in result.stderr
    assert "Complete SUCCEEDED" in result.stderr


def test_a_failed_job_is_a_failure(kube: KubeApi) -> None:
    failed = job_status(
        kube, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed",
        message="exit code 2",
    )  # fmt: skip
    script(kube, failed)
    message = fails(KubernetesError, *TRAINER, "--yes")
    assert "RayJob/aalnet-trainer has failed: AppFailed: exit code 2" in message
    assert "aalnet deploy logs trainer" in message


def test_waiting_ends_in_time_and_says_why(kube: KubeApi) -> None:
    unscheduled = {
        "phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}],
    }  # fmt: skip
    kube.objects.put(pod("t-worker-1", JOB, "trainer", status=unscheduled))
    kube.objects.put(pod("t-worker-2", JOB, "trainer", status=unscheduled))
    message = fails(TimedOut, *TRAINER, "--yes", "--timeout-s", "1")
    assert "t-worker-1 and 1 more: no free GPU (nvidia.com/gpu): 0/3 nodes" in message
    assert "aalnet deploy status" in message


@pytest.mark.parametrize("fault", [
    Fault("GET", "", DROP, 12), Fault("GET", "", 503, 7), Fault("GET", "/pods$", 500, 4),
    Fault("GET", "/events$", 429),
], ids=["restart", "503", "500", "429"])  # fmt: skip
def test_waiting_outlasts_faults(kube: KubeApi, fault: Fault) -> None:
    """More of them than one request's tries, as while the API server restarts."""
    script(kube, lambda: kube.faults.append(fault), job_status(kube, **DONE), pause_s=0.8)
    result = good(*TRAINER, "--yes")
    assert "Complete SUCCEEDED" in result.stderr
    assert "Retry" not in result.stderr
    assert fault.times == 0


def test_waiting_for_a_lost_server_ends(kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "PATIENCE_S", 0.3)
    script(kube, lambda: kube.faults.append(Fault("GET", "", DROP, 999)))
    assert "cannot be reached" in fails(Unreachable, *TRAINER, "--yes")


def test_a_job_deleted_meanwhile_is_told(kube: KubeApi) -> None:
    script(kube, lambda: kube.objects.forget("RayJob", "aalnet", JOB))
    assert "was deleted meanwhile" in fails(KubernetesError, *TRAINER, "--yes")


def test_waits_for_the_endpoints_rollout(kube: KubeApi) -> None:
    def rolled(done: bool) -> Edit:
        counts = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": int(done)}
        return lambda item: item.update(status={"observedGeneration": 1, **counts})

    def play() -> None:
        while "Deployment/aalnet-endpoint" not in kube.objects.names():
            time.sleep(0.02)
        for done in (False, True):
            time.sleep(0.4)
            kube.objects.edit("Deployment", "aalnet-endpoint", rolled(done))

    threading.Thread(target=play, daemon=True).start()
    result = good("apply", "endpoint", "--overlay", "local", "--yes", "--json")
    assert json.loads(result.stdout)["outcome"] == "done"
    assert "0/1 ready, 1 new" in result.stderr
    assert "1/1 ready" in result.stderr


# Logs


def stamped(*texts: str) -> list[str]:
    return [f"2026-11-20T08:00:{i // 3:02}.{i:09}Z {text}" for i, text in enumerate(texts)]


def test_logs_of_the_driver(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    assert "no driver pod with a log yet" in fails(NotFound, "logs", "trainer")
    kube.objects.put(pod("s", JOB, "submitter", status=RUNNING))
    kube.logs["s"] = stamped("one", "two", "three")
    assert good("logs", "trainer").stdout == "one\ntwo\nthree\n"
    assert good("logs", "trainer", "--tail", "1").stdout == "three\n"
    assert "no trainer other" in fails(NotFound, "logs", "trainer", "--name", "other")


def test_followed_logs_outlast_a_lost_connection(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    kube.objects.put(pod("s", JOB, "submitter", status=RUNNING))
    texts = [f"line {number}" for number in range(12)]
    kube.logs["s"] = stamped(*texts)[:6]
    kube.open_logs.add("s")
    kube.faults += [Fault("GET", "/log$", CUT), Fault("GET", "/log$", DROP)]

    def go_on() -> None:
        kube.logs["s"] = stamped(*texts)
        time.sleep(0.5)
        kube.open_logs.clear()
        job_status(kube, **DONE)()

    script(kube, go_on, pause_s=0.8)
    assert good("logs", "trainer", "--follow").stdout.splitlines() == texts


def test_logs_of_several_pods_name_them(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    for name in ("w1", "w2"):
        labels = {"ray.io/node-type": "worker"}
        kube.objects.put(pod(name, JOB, "trainer", status=RUNNING, **labels))
        kube.logs[name] = stamped(f"of {name}")
    assert good("logs", "trainer", "--of", "worker").stdout == "w1  of w1\nw2  of w2\n"

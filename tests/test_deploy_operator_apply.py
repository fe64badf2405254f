"""`aalnet deploy` against an API server over HTTP: apply, its conflicts, replacing and deleting."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import AalnetError, UserError
from deploy.commands import deploy_options
from deploy.operator import execute
from deploy.operator.errors import (
    AccessError,
    FieldConflict,
    KubernetesError,
    ManifestError,
    TimedOut,
)
from deploy.operator.render import render
from tests.support import kube_store
from tests.support.kube_answers import APPLY
from tests.support.kube_api import DROP, Fault, KubeApi
from tests.support.kube_deploy import IMAGE, TRAINER, deploy, fails, good


def job(status: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda item: item.update(status=status)


DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {
    "jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 2",
}  # fmt: skip


# Apply


def test_first_apply_sends_what_was_shown(kube: KubeApi) -> None:
    result = good(*TRAINER, "--yes", "--no-wait", "--set", "objective.eta=0.4")
    assert "RayJob/aalnet-trainer new" in result.stdout
    assert f"image: {IMAGE}" in result.stdout
    assert kube.objects.names() >= {
        "RayJob/aalnet-trainer", "ConfigMap/aalnet-trainer-settings",
        "ConfigMap/aalnet-trainer-environment",
    }  # fmt: skip
    patches = kube.sent("PATCH")
    assert [p.query.get("dryRun") for p in patches] == ["All"] * 3 + [None] * 3
    for patch in patches:
        assert patch.headers["Content-Type"] == APPLY
        assert patch.query["fieldManager"] == "aalnet"
        assert patch.query["force"] == "false"
    assert patches[-1].path == "/apis/ray.io/v1/namespaces/aalnet/rayjobs/aalnet-trainer"
    run = kube.objects.get("ConfigMap", "aalnet", "aalnet-trainer-settings")["data"]["run.yaml"]
    assert "eta: 0.4" in run


def test_the_same_again_changes_nothing(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait")
    before = len(kube.requests)
    result = good(*TRAINER, "--no-wait")  # nothing to ask for either
    assert result.stdout.count("unchanged") == 3
    sent = [r for r in kube.requests[before:] if r.method != "GET"]
    assert {r.query.get("dryRun") for r in sent} == {"All"}


def test_without_a_terminal_nothing_is_changed(kube: KubeApi) -> None:
    assert "--yes" in fails(UserError, *TRAINER)
    assert kube.objects.names() == {"Namespace/aalnet"}


@pytest.mark.parametrize(("answer", "code", "created"), [("y\n", 0, True), ("n\n", 1, False)])
def test_asks_at_a_terminal(
    kube: KubeApi, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, created: bool
) -> None:
    monkeypatch.setattr(deploy_options, "at_a_terminal", lambda: True)
    result = deploy(*TRAINER, "--no-wait", answer=answer)
    assert result.exit_code == code, result.exception
    assert "apply this to http://127.0.0.1" in result.output
    assert ("RayJob/aalnet-trainer" in kube.objects.names()) is created


def test_dry_run_shows_and_sends_nothing(kube: KubeApi) -> None:
    assert "RayJob/aalnet-trainer new" in good(*TRAINER, "--dry-run").stdout
    assert kube.objects.names() == {"Namespace/aalnet"}


def test_a_changed_endpoint_is_shown_as_a_difference(kube: KubeApi) -> None:
    words = ("apply", "endpoint", "--overlay", "local", "--yes", "--no-wait")
    good(*words)
    kube.objects.edit("Deployment", "aalnet-endpoint", lambda d: d["spec"].update(replicas=3))
    result = good(*words, "--set", "batch_samples=64", "--model", "faces", "--storage", "s3://b/p")
    output = result.stdout
    assert "-        - --model=drawings" in output
    assert "+        - --model=faces" in output
    assert "+        - --set=batch_samples=64" in output
    assert "replicas" not in output  # the autoscaler's; nothing of ours
    deployment = kube.objects.get("Deployment", "aalnet", "aalnet-endpoint")
    assert deployment["spec"]["replicas"] == 3
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    named = container["envFrom"][0]["configMapRef"]["name"]
    assert kube.objects.get("ConfigMap", "aalnet", named)["data"]["AALNET_STORAGE"] == "s3://b/p"


def test_json_is_alone_on_standard_output(kube: KubeApi) -> None:
    result = good(*TRAINER, "--yes", "--no-wait", "--json")
    answer = json.loads(result.stdout)
    assert answer["workload"] == "RayJob/aalnet-trainer"
    assert answer["applied"] is True
    assert set(answer["objects"].values()) == {"new"}


def test_blanks_are_refused_before_anything_is_sent(kube: KubeApi) -> None:
    message = fails(ManifestError, "apply", "trainer", "--overlay", "aws", "--yes")
    assert "BUCKET" in message
    assert "--image" in message
    assert kube.requests == []


# Conflicts


def owned_by_helm(kube: KubeApi) -> None:
    """Somebody else has applied the endpoint's Deployment with another image."""
    (item,) = [o for o in render("local", "endpoint") if o["kind"] == "Deployment"]
    item["spec"]["progressDeadlineSeconds"] = 99
    item["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "aalnet"
    kube.objects.apply(item, "helm")


def test_a_conflict_names_field_and_owner(kube: KubeApi) -> None:
    owned_by_helm(kube)
    message = fails(FieldConflict, "apply", "endpoint", "--overlay", "local", "--yes")
    assert ".spec.progressDeadlineSeconds is helm's" in message
    assert "--force-conflicts" in message
    assert FieldConflict("").exit_code == 4
    assert not any(r.query.get("dryRun") is None for r in kube.sent("PATCH"))


def test_forced_conflicts_are_taken_over(kube: KubeApi) -> None:
    owned_by_helm(kube)
    good("apply", "endpoint", "--overlay", "local", "--yes", "--no-wait", "--force-conflicts")
    deployment = kube.objects.get("Deployment", "aalnet", "aalnet-endpoint")
    assert deployment["spec"]["progressDeadlineSeconds"] == 600
    good("apply", "endpoint", "--overlay", "local", "--no-wait")  # ours now: no conflict


def test_another_components_name_is_refused(kube: KubeApi) -> None:
    good(*TRAINER, "--yes", "--no-wait", "--name", "faces")
    message = fails(
        ManifestError, "apply", "campaign", "--overlay", "local", "--yes", "--name", "faces"
    )
    assert "faces-environment exists and is a trainer; choose another --name" in message


def test_a_status_written_meanwhile_is_no_change(
    kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("apply", "endpoint", "--overlay", "local", "--yes", "--no-wait")
    good(*words)
    apply = kube_store.Objects.apply
    meddled = []

    def meddling(store: kube_store.Objects, item: Any, manager: str, **options: Any) -> Any:
        if item["kind"] == "Deployment" and not options.get("dry_run") and not meddled:
            meddled.append(1)
            store.edit("Deployment", "aalnet-endpoint", lambda d: d.update(status={"replicas": 1}))
        return apply(store, item, manager, **options)

    monkeypatch.setattr(kube_store.Objects, "apply", meddling)
    good(*words, "--model", "faces")
    assert meddled


def test_what_was_changed_meanwhile_is_not_overwritten(
    kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("apply", "endpoint", "--overlay", "local", "--yes", "--no-wait")
    good(*words)
    apply = kube_store.Objects.apply

    def meddling(store: kube_store.Objects, item: Any, manager: str, **options: Any) -> Any:
        if item["kind"] == "Deployment" and not options.get("dry_run"):
            store.edit("Deployment", "aalnet-endpoint", lambda d: d["spec"].update(paused=True))
        return apply(store, item, manager, **options)

    monkeypatch.setattr(kube_store.Objects, "apply", meddling)
    assert "changed by somebody else" in fails(KubernetesError, *words, "--model", "faces")


# A RayJob is read once


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


# A server that fails


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        (Fault("GET", "/configmaps/", 401, 9), AccessError, "log in again"),
        (Fault("PATCH", "rayjobs", 500, 9, "etcdserver: timed out"), KubernetesError, "etcd"),
        (Fault("PATCH", "rayjobs", 422, 9, "spec.x: Invalid"), ManifestError, "refuses it: spec.x"),
        (Fault("PATCH", "rayjobs", 403, 9, 'rayjobs "x" is forbidden: exceeded quota: aalnet'),
         KubernetesError, "exceeded quota"),
        (Fault("PATCH", "rayjobs", 500, 9, "failed to create typed patch object: .spec.entrypiont: "
               "field not declared in schema"), ManifestError, "refuses it: failed to create"),
        (Fault("PATCH", "configmaps", DROP, 9), KubernetesError, "cannot be reached"),
    ],
    ids=["401", "500", "422", "quota", "schema", "dropped"],
)  # fmt: skip
def test_failures(kube: KubeApi, fault: Fault, kind: type[AalnetError], expected: str) -> None:
    kube.faults.append(fault)
    assert expected in fails(kind, *TRAINER, "--yes")
    assert "RayJob/aalnet-trainer" not in kube.objects.names()


@pytest.mark.parametrize("code", [429, 500, 503, DROP])
def test_what_passes_is_asked_for_again(kube: KubeApi, code: int) -> None:
    kube.faults += [Fault("GET", "/rayjobs/", code), Fault("PATCH", "configmaps", code, 2)]
    good(*TRAINER, "--yes", "--no-wait")
    assert "RayJob/aalnet-trainer" in kube.objects.names()


def test_retry_after_is_heeded(kube: KubeApi) -> None:
    kube.faults.append(Fault("PATCH", "rayjobs", 429, headers={"Retry-After": "1"}))
    began_s = time.monotonic()
    good(*TRAINER, "--yes", "--no-wait")
    assert time.monotonic() - began_s >= 1


def test_a_missing_permission_is_named(kube: KubeApi) -> None:
    kube.forbidden.add(("patch", "rayjobs"))
    message = fails(AccessError, *TRAINER, "--yes")
    assert 'cannot patch resource "rayjobs"' in message
    assert "aalnet-operator" in message


def test_missing_things_are_named(kube: KubeApi) -> None:
    message = fails(KubernetesError, *TRAINER, "--yes", "--namespace", "elsewhere")
    assert "namespace elsewhere is missing" in message
    kube.missing.add("ray.io")
    assert "install KubeRay" in fails(KubernetesError, *TRAINER, "--yes")


def test_warnings_of_the_server_are_shown(kube: KubeApi) -> None:
    kube.warnings.append("would violate PodSecurity restricted")
    result = good(*TRAINER, "--yes", "--no-wait")
    assert "warning: would violate PodSecurity restricted" in result.stderr


@pytest.mark.parametrize("text", ["not: [yaml", "", "{}"])
def test_no_usable_kubeconfig(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    message = fails(AccessError, "status", "--kubeconfig", str(path))
    assert "--kubeconfig" in message


def test_no_server_at_that_address(kube: KubeApi, tmp_path: Path) -> None:
    path = kube.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace(kube.url, "http://127.0.0.1:1"))
    assert "cannot be reached" in fails(KubernetesError, "status", "--kubeconfig", str(path))

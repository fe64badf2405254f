"""`aalnet deploy apply` against an API server over HTTP: what it shows and sends, its conflicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aalnet.errors import UserError
from deploy.commands import deploy_options
from deploy.operator.errors import FieldConflict, KubernetesError, ManifestError
from deploy.operator.render import render
from tests.support import kube_store
from tests.support.kube_answers import APPLY
from tests.support.kube_api import KubeApi
from tests.support.kube_deploy import IMAGE, TRAINER, deploy, fails, good

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

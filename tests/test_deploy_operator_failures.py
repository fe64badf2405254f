"""`aalnet deploy` against an API server that fails, forbids or is not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aalnet.errors import AalnetError
from deploy.operator.errors import AccessError, KubernetesError, ManifestError
from tests.support.kube_api import DROP, Fault, KubeApi
from tests.support.kube_deploy import TRAINER, fails, good


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

"""`aalnet deploy doctor` examines a cluster in order, an empty one, and one it may not see."""

from __future__ import annotations

import json

from tests.support.kube_api import DROP, Fault, KubeApi
from tests.support.kube_deploy import deploy, good


def cluster_in_order(kube: KubeApi) -> None:
    kube.objects.put({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "kuberay-operator", "namespace": "kuberay",
                     "labels": {"app.kubernetes.io/name": "kuberay-operator"}},
        "spec": {"template": {"spec": {"containers": [{"image": "q/kuberay/operator:v1.7.0"}]}}},
        "status": {"availableReplicas": 1},
    })  # fmt: skip
    kube.objects.put({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {
            "name": "gp3",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    })  # fmt: skip
    kube.objects.put({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        "status": {"allocatable": {"nvidia.com/gpu": "4"}},
    })  # fmt: skip


def doctor(kube: KubeApi, *words: str) -> dict[str, dict[str, str]]:
    result = deploy("doctor", "--json", *words)
    results = json.loads(result.stdout)
    assert result.exit_code == (0 if results["ok"] else 1)
    return {check["name"]: check for check in results["checks"]}


def test_doctor_of_a_cluster_in_order(kube: KubeApi) -> None:
    cluster_in_order(kube)
    results = doctor(kube)
    assert {check["status"] for check in results.values()} == {"ok"}
    assert "operator:v1.7.0" in results["kuberay"]["detail"]
    assert "4 on 1 of 1 nodes (NVIDIA-L4)" in results["gpu nodes"]["detail"]
    assert results["manifests"]["detail"].startswith("the server takes all 11 objects")
    assert {r.query.get("dryRun") for r in kube.sent("PATCH")} == {"All"}
    assert "  ok  kuberay" in good("doctor").stdout


def test_doctor_of_an_empty_cluster(kube: KubeApi) -> None:
    kube.missing |= {"ray.io", "kueue.x-k8s.io", "monitoring.coreos.com", "custom.metrics.k8s.io"}
    kube.objects.forget("Namespace", "", "aalnet")
    kube.forbidden |= {("patch", "rayjobs"), ("get", "pods/log")}
    kube.version = "v1.29.4-eks-1"
    results = doctor(kube, "--overlay", "kueue")
    statuses = {name: check["status"] for name, check in results.items()}
    assert statuses == {
        "server": "warn", "kuberay": "fail", "namespace": "fail", "permissions": "fail",
        "storage class": "warn", "gpu nodes": "warn", "kueue": "fail", "prometheus": "warn",
        "metrics": "warn", "manifests": "fail",
    }  # fmt: skip
    assert "patch rayjobs, get pods/log" in results["permissions"]["detail"]
    assert all(check["remedy"] for check in results.values())


def test_doctor_sees_what_it_may(kube: KubeApi) -> None:
    cluster_in_order(kube)
    kube.forbidden |= {("list", "nodes"), ("list", "storageclasses")}
    results = doctor(kube)
    assert results["gpu nodes"]["status"] == results["storage class"]["status"] == "warn"
    assert "cannot list" in results["gpu nodes"]["detail"]


def test_doctor_without_a_server_says_one_thing(kube: KubeApi) -> None:
    kube.faults.append(Fault("GET", "/version", DROP, 99))
    results = doctor(kube)
    assert list(results) == ["server"]

"""Kubernetes objects as plain data: how to name them, and where things lie in the ones we have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from deploy.operator.errors import ManifestError

Object = dict[str, Any]
Component = Literal["trainer", "campaign", "endpoint"]
COMPONENTS: tuple[Component, ...] = ("trainer", "campaign", "endpoint")
NAMESPACE = "aalnet"
MANAGER = "aalnet"  # our field manager, and the value of the label managed-by
COMPONENT_LABEL = "app.kubernetes.io/component"
INSTANCE_LABEL = "app.kubernetes.io/instance"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
JOB_KINDS = ("RayJob",)
SERVER_KINDS = ("Deployment", "RayService")
# What a component may consist of, in the order of its deletion.
COMPONENT_KINDS: dict[str, str] = {
    "RayJob": "ray.io/v1",
    "RayService": "ray.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "ConfigMap": "v1",
}
API_VERSIONS: dict[str, str] = COMPONENT_KINDS | {
    "Event": "v1",
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "SelfSubjectAccessReview": "authorization.k8s.io/v1",
    "StorageClass": "storage.k8s.io/v1",
}
CLUSTER_SCOPED = ("Namespace", "Node", "SelfSubjectAccessReview", "StorageClass")


def title(item: Object) -> str:
    """`RayJob/aalnet-trainer`"""
    return f"{item['kind']}/{item['metadata']['name']}"


def default_name(component: Component) -> str:
    """What the overlays call the one instance of a component."""
    return f"aalnet-{component}"


def workload(objects: Sequence[Object]) -> Object:
    """The one object that runs pods.

    Raises:
        ManifestError: there is none, or there are several.
    """
    workloads = [item for item in objects if item["kind"] in (*JOB_KINDS, *SERVER_KINDS)]
    if len(workloads) != 1:
        titles = ", ".join(title(item) for item in workloads) or "none"
        raise ManifestError(
            f"a component has one RayJob, RayService or Deployment, got {titles}; give --overlay a "
            "folder of one component"
        )
    return workloads[0]


def ray_cluster_spec(item: Object) -> Object:
    """The spec of the RayCluster inside a RayJob or a RayService; empty elsewhere."""
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(item["kind"], "")
    spec: Object = item["spec"].get(key) or {}
    return spec


def worker_group(item: Object) -> Object:
    """The one worker group of a Ray cluster. Raises ManifestError where there are several."""
    groups: list[Object] = ray_cluster_spec(item).get("workerGroupSpecs", [])
    if len(groups) != 1:
        raise ManifestError(f"{title(item)} has {len(groups)} worker groups; --workers needs one")
    return groups[0]


def containers(item: Object) -> Iterator[Object]:
    """Every container that a workload's file names."""
    if item["kind"] == "Deployment":
        templates = [item["spec"]["template"]]
    else:
        cluster = ray_cluster_spec(item)
        groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
        templates = [group["template"] for group in groups]
        templates += [item["spec"].get("submitterPodTemplate") or {"spec": {"containers": []}}]
    for template in templates:
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


def config_map(objects: Sequence[Object], suffix: str) -> Object:
    """The ConfigMap of settings or of the environment, whatever its hash.

    Raises:
        ManifestError: it is not there.
    """
    for item in objects:
        if item["kind"] == "ConfigMap" and f"-{suffix}" in item["metadata"]["name"]:
            return item
    raise ManifestError(f"the overlay has no ConfigMap NAME-{suffix}; see docs/kubernetes.md")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value

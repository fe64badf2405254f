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
NAME, PART, MADE_BY, INSTANCE = (
    f"app.kubernetes.io/{label}" for label in ("name", "component", "managed-by", "instance")
)
JOBS = ("RayJob",)
SERVERS = ("Deployment", "RayService")
# What a component may consist of, in the order in which it is taken away.
KINDS: dict[str, str] = {
    "RayJob": "ray.io/v1",
    "RayService": "ray.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "ConfigMap": "v1",
}


def title(item: Object) -> str:
    """`RayJob/aalnet-trainer`"""
    return f"{item['kind']}/{item['metadata']['name']}"


def default_name(component: Component) -> str:
    return f"aalnet-{component}"


def workload(objects: Sequence[Object]) -> Object:
    """The one object that runs pods.

    Raises:
        ManifestError: there is none, or there are several.
    """
    found = [item for item in objects if item["kind"] in (*JOBS, *SERVERS)]
    if len(found) != 1:
        told = ", ".join(title(item) for item in found) or "none"
        raise ManifestError(
            f"a component has one RayJob, RayService or Deployment, got {told}; give --overlay a "
            "folder of one component"
        )
    return found[0]


def cluster_of(item: Object) -> Object | None:
    """The RayCluster inside a RayJob or a RayService."""
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(item["kind"])
    found: Object | None = item["spec"].get(key) if key else None
    return found


def worker_group(item: Object) -> Object:
    """The one worker group of a Ray cluster. Raises ManifestError where there are several."""
    groups = (cluster_of(item) or {}).get("workerGroupSpecs", [])
    if len(groups) != 1:
        raise ManifestError(f"{title(item)} has {len(groups)} worker groups; --workers needs one")
    found: Object = groups[0]
    return found


def pod_templates(item: Object) -> Iterator[Object]:
    """Every pod template of a workload: of the submitter, the head, the workers, the endpoint."""
    if item["kind"] == "Deployment":
        yield item["spec"]["template"]
        return
    if submitter := item["spec"].get("submitterPodTemplate"):
        yield submitter
    cluster = cluster_of(item) or {}
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster.get("workerGroupSpecs", []))


def containers(item: Object) -> Iterator[Object]:
    """Every container that a workload's file names."""
    for template in pod_templates(item):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


def config_map(objects: Sequence[Object], suffix: str) -> Object:
    """The ConfigMap of settings or of the environment, whatever its hash.

    Raises:
        ManifestError: it is not there.
    """
    wanted = f"-{suffix}"
    for item in objects:
        if item["kind"] == "ConfigMap" and wanted in item["metadata"]["name"]:
            return item
    raise ManifestError(f"the overlay has no ConfigMap NAME{wanted}; see docs/kubernetes.md")


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

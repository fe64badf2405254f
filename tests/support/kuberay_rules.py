"""KubeRay's own rules: its CRDs cannot say them, its operator checks them later."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.kubernetes_objects import Object, cluster_spec
from tests.support.kubernetes_rules import named

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas" / "kuberay-1.7.0"
MAX_NAME_CHARS = 47
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
QUEUE = "kueue.x-k8s.io/queue-name"
# KubeRay or Kueue has rules for these, too; no manifest of ours uses them.
UNUSED = {
    "clusterSelector", "deletionStrategy", "historyServerOptions", "managedBy", "networkPolicy",
    "suspend", "tlsOptions",
}  # fmt: skip


def kuberay(objects: list[Object]) -> Iterator[str]:
    """What KubeRay's operator checks of Ray's own kinds, beyond its schemas."""
    for item in objects:
        spec, cluster = item.get("spec", {}), cluster_spec(item)
        if cluster is None:
            continue
        problems = [f"{key}: add KubeRay's rules for it here"
                    for part in (spec, cluster) for key in UNUSED & part.keys()]  # fmt: skip
        name = item["metadata"]["name"]
        if len(name) > MAX_NAME_CHARS or not DNS_1035.fullmatch(name):
            problems.append(f"name {name}: at most {MAX_NAME_CHARS} of a-z, 0-9 and -")
        problems += [*(_job(spec) if item["kind"] == "RayJob" else _service(spec)),
                     *_cluster(cluster), *_auth(cluster)]  # fmt: skip
        elastic = item["metadata"].get("annotations", {}).get("kueue.x-k8s.io/elastic-job")
        queued = QUEUE in item["metadata"].get("labels", {})
        if queued and cluster.get("enableInTreeAutoscaling") and elastic != "true":
            problems.append("autoscaling under Kueue needs the annotation elastic-job")
        yield from (f"{named(item)}: {problem}" for problem in problems)


def _job(spec: Object) -> Iterator[str]:
    if spec.get("submissionMode") != "K8sJobMode":
        yield f"submissionMode {spec.get('submissionMode')}: add KubeRay's rules for it here"
    if spec.get("shutdownAfterJobFinishes") is not True:  # Kueue and the TTL need it, too
        yield "nothing ends the cluster: its GPUs stay idle after the job"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("preRunningDeadlineSeconds", 1) <= 0:
        yield "a deadline must be positive"
    template = spec.get("submitterPodTemplate", {}).get("spec", {})
    if template.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter is a Job: restartPolicy Never or OnFailure"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def _service(spec: Object) -> Iterator[str]:
    if spec.get("upgradeStrategy", {}).get("type") != "NewCluster":
        yield f"upgradeStrategy {spec.get('upgradeStrategy')}: add KubeRay's rules for it here"
    if not isinstance(yaml.safe_load(spec.get("serveConfigV2", "")), dict):
        yield "serveConfigV2 is no mapping"


def _cluster(cluster: Object) -> Iterator[str]:
    scaled = cluster.get("enableInTreeAutoscaling", False)
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
        where, params = group.get("groupName", "head"), group.get("rayStartParams", {})
        if group.get("resources") and any(key in params for key in START_RESOURCES):
            yield f"{where}: resources both in rayStartParams and in resources"
        if "labels" in params:
            yield f"{where}: rayStartParams.labels"
        if scaled and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{where}: autoscaler v2 wants restartPolicy Never or unset"
        if scaled and group.get("suspend"):
            yield f"{where}: suspend not with autoscaling"
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= group.get("replicas", low) <= high:
            yield f"{where}: replicas {group.get('replicas')} outside {low} to {high}"
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'head: num-cpus is not "0": work would land on it'


def _auth(cluster: Object) -> Iterator[str]:
    version = re.fullmatch(r"(\d+)\.(\d+)\.\d+", cluster.get("rayVersion", ""))
    if cluster.get("authOptions") != {"mode": "token"}:
        yield "authOptions.mode is not token: whoever reaches the head runs code on it"
    if not version or (int(version[1]), int(version[2])) < (2, 52):
        yield "a token needs rayVersion 2.52 or newer"


def crd_errors(item: Object) -> list[str]:
    """As the API server checks it: a default is as good as a value, an unknown field is not."""
    file = SCHEMAS / f"ray.io_{item['kind'].lower()}s.schema.json"
    crd = json.loads(file.read_text(encoding="utf-8"))
    group, _, version = item["apiVersion"].partition("/")
    if group != crd["group"] or not crd["versions"].get(version, {}).get("served"):
        return [f"{item['apiVersion']} is not served"]
    checker = jsonschema.Draft202012Validator(closed(crd["schema"]))
    return [f"{error.json_path}: {error.message[:200]}" for error in checker.iter_errors(item)]


def closed(schema: Any) -> Any:
    """A CRD's schema as JSON Schema: no unknown field; what has a default is not required."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = copy.copy(schema)
    if isinstance(strict.get("properties"), dict):
        properties = strict["properties"]
        strict["properties"] = {key: closed(value) for key, value in properties.items()}
        if not strict.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
        if "required" in strict:
            strict["required"] = [
                k for k in strict["required"] if "default" not in properties.get(k, {})
            ]
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf"):
        if key in strict:
            strict[key] = closed(strict[key])
    return strict

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
NAMES = {"RayJob": 47, "RayService": 47, "RayCluster": 53, "RayCronJob": 36}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
FEATURES_OFF = ("networkPolicy", "tlsOptions", "historyServerOptions")  # gates, off by default
QUEUE = "kueue.x-k8s.io/queue-name"
WORKER_GROUPS_OF_KUEUE = 17


def kuberay(objects: list[Object]) -> Iterator[str]:
    """Everything about Ray's own kinds."""
    for item in objects:
        if item["kind"] not in NAMES:
            continue
        name, cluster = item["metadata"]["name"], cluster_spec(item)
        told = [f"apiVersion {item['apiVersion']}"] if item["apiVersion"] != "ray.io/v1" else []
        if len(name) > NAMES[item["kind"]] or not DNS_1035.fullmatch(name):
            told.append(f"name {name}: at most {NAMES[item['kind']]} of a-z, 0-9 and -")
        if item["kind"] == "RayJob":
            told += [*_job(item["spec"]), *_deletion(item["spec"])]
        if item["kind"] == "RayService":
            told += _service(item["spec"])
        if cluster is not None:
            told += [*_cluster(cluster), *_auth(cluster, item["kind"])]
        if QUEUE in item["metadata"].get("labels", {}):
            told += _kueue(item["spec"], cluster or {}, item["metadata"].get("annotations", {}))
        yield from (f"{named(item)}: {line}" for line in told)


def _job(spec: Object) -> Iterator[str]:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    if mode not in MODES:
        yield f"submissionMode {mode}"
    if not spec.get("rayClusterSpec") and not selector:
        yield "neither rayClusterSpec nor clusterSelector"
    if spec.get("backoffLimit", 0) and (selector or mode == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "suspend needs shutdownAfterJobFinishes and no clusterSelector"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("preRunningDeadlineSeconds", 1) <= 0:
        yield "a deadline must be positive"
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if key in spec:
                yield f"SidecarMode takes no {key}"
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {})
        if head.get("template", {}).get("spec", {}).get("restartPolicy", "Never") != "Never":
            yield "SidecarMode wants the head's restartPolicy Never or unset"
    template = spec.get("submitterPodTemplate", {}).get("spec", {})
    if template and template.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter is a Job: restartPolicy Never or OnFailure"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def _deletion(spec: Object) -> Iterator[str]:
    shutdown, strategy = spec.get("shutdownAfterJobFinishes"), spec.get("deletionStrategy", {})
    rules = strategy.get("deletionRules", [])
    if strategy and shutdown:
        yield "deletionStrategy and shutdownAfterJobFinishes exclude each other"
    if "ttlSecondsAfterFinished" in spec and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if rules and {"onSuccess", "onFailure"} & set(strategy):
        yield "deletionRules and onSuccess or onFailure exclude each other"
    scaled = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
    for rule in rules:
        if len({"jobStatus", "jobDeploymentStatus"} & set(rule.get("condition", {}))) != 1:
            yield "a deletion rule asks for jobStatus or jobDeploymentStatus, one of them"
        if rule["policy"] == "DeleteWorkers" and scaled:
            yield "DeleteWorkers not with autoscaling"
    if not shutdown and not strategy:
        yield "nothing ends the cluster: its GPUs stay idle after the job"


def _service(spec: Object) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if strategy not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"upgradeStrategy {strategy}"
    if not isinstance(yaml.safe_load(spec.get("serveConfigV2", "")), dict):
        yield "serveConfigV2 is no mapping"
    if "name" in spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get(
        "metadata", {}
    ):
        yield "headService has a name"
    scaled = spec["rayClusterConfig"].get("enableInTreeAutoscaling")
    if strategy == "NewClusterWithIncrementalUpgrade" and not scaled:
        yield "an incremental upgrade needs autoscaling"


def _cluster(cluster: Object) -> Iterator[str]:
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    scaled = cluster.get("enableInTreeAutoscaling", False)
    for group in groups:
        where, template = group.get("groupName", "head"), group["template"]["spec"]
        params = group.get("rayStartParams", {})
        if not template.get("containers"):
            yield f"{where}: no container"
        if group.get("resources") and any(key in params for key in START_RESOURCES):
            yield f"{where}: resources both in rayStartParams and in resources"
        if "labels" in params:
            yield f"{where}: rayStartParams.labels"
        if not all(isinstance(value, str) for value in params.values()):
            yield f"{where}: rayStartParams are texts"
        if scaled and template.get("restartPolicy", "Never") != "Never":
            yield f"{where}: autoscaler v2 wants restartPolicy Never or unset"
        if scaled and group.get("suspend"):
            yield f"{where}: suspend not with autoscaling"
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= group.get("replicas", low) <= high:
            yield f"{where}: replicas {group.get('replicas')} outside {low} to {high}"
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'head: num-cpus is not "0": work would land on it'
    yield from (f"{key}: its feature gate is off" for key in FEATURES_OFF if key in cluster)


def _auth(cluster: Object, kind: str) -> Iterator[str]:
    auth, version = cluster.get("authOptions", {}), cluster.get("rayVersion", "")
    if auth.get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches the head runs code on it"
    elif not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"a token needs rayVersion, not {version!r}"
    elif tuple(map(int, version.split("."))) < (2, 52, 0):
        yield f"a token needs Ray 2.52, not {version}"
    if auth.get("enableK8sTokenAuth") and kind in ("RayJob", "RayService"):
        yield f"enableK8sTokenAuth is refused for {kind}"


def _kueue(spec: Object, cluster: Object, annotations: Object) -> Iterator[str]:
    if "entrypoint" in spec and not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue insists on shutdownAfterJobFinishes"
    if "suspend" in spec:
        yield "suspend is Kueue's own"
    if "clusterSelector" in spec:
        yield "Kueue takes no clusterSelector"
    if len(cluster.get("workerGroupSpecs", [])) > WORKER_GROUPS_OF_KUEUE:
        yield f"Kueue takes {WORKER_GROUPS_OF_KUEUE} worker groups at most"
    elastic = annotations.get("kueue.x-k8s.io/elastic-job") == "true"
    if cluster.get("enableInTreeAutoscaling") and not elastic:
        yield "autoscaling under Kueue needs the annotation elastic-job"


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
    made = copy.copy(schema)
    if isinstance(made.get("properties"), dict):
        properties = made["properties"]
        made["properties"] = {key: closed(value) for key, value in properties.items()}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        if "required" in made:
            made["required"] = [
                k for k in made["required"] if "default" not in properties.get(k, {})
            ]
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf"):
        if key in made:
            made[key] = closed(made[key])
    return made

"""What manifests say of each other: every name leads somewhere, every selector finds something."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.kubernetes_objects import Object, Pod, pods
from tests.support.kubernetes_rules import GIVEN_SECRETS, named


def names(objects: list[Object], kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in objects if item["kind"] == kind}


def references(objects: list[Object]) -> Iterator[str]:
    """ConfigMaps, Secrets, accounts and priorities that pods name, and roles that bindings name."""
    maps, accounts = names(objects, "ConfigMap"), names(objects, "ServiceAccount")
    priorities = names(objects, "PriorityClass")
    for pod in pods(objects):
        yield from (f"{pod.where}: no ConfigMap {name}" for name in _maps(pod) - maps)
        unknown = _secrets(pod) - GIVEN_SECRETS
        yield from (f"{pod.where}: Secret {name} is not documented" for name in unknown)
        if pod.spec.get("serviceAccountName", "default") not in accounts | {"default"}:
            yield f"{pod.where}: no ServiceAccount {pod.spec['serviceAccountName']}"
        if pod.spec.get("priorityClassName") not in priorities | {None}:
            yield f"{pod.where}: no PriorityClass {pod.spec['priorityClassName']}"
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for mount in (m for c in pod.containers for m in c.get("volumeMounts", [])):
            if mount["name"] not in volumes and not pod.where.startswith("StatefulSet"):
                yield f"{pod.where}: no volume {mount['name']}"
    for binding in (item for item in objects if item["kind"] == "RoleBinding"):
        if binding["roleRef"]["name"] not in names(objects, binding["roleRef"]["kind"]):
            yield f"{named(binding)}: no {binding['roleRef']['kind']} {binding['roleRef']['name']}"


def _maps(pod: Pod) -> set[str]:
    sources = [source for c in pod.containers for source in c.get("envFrom", [])]
    in_volumes = [v["configMap"] for v in pod.spec.get("volumes", []) if "configMap" in v]
    return {s["configMapRef"]["name"] for s in sources if "configMapRef" in s} | {
        volume["name"] for volume in in_volumes
    }


def _secrets(pod: Pod) -> set[str]:
    chosen = {v["secret"]["secretName"] for v in pod.spec.get("volumes", []) if "secret" in v}
    for container in pod.containers:
        chosen |= {s["secretRef"]["name"] for s in container.get("envFrom", []) if "secretRef" in s}
        for variable in container.get("env", []):
            if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                chosen.add(ref["name"])
    return chosen


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Kubernetes' label selectors: matchLabels, and the operators of matchExpressions."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        key, operator, values = rule["key"], rule["operator"], rule.get("values", [])
        chosen = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not chosen:
            return False
    return True


def selectors(objects: list[Object]) -> Iterator[str]:
    """Every selector finds pods, a workload's its own, and ports by the names that they have."""
    every = pods(objects)
    for item in objects:
        spec, kind = item.get("spec", {}), item["kind"]
        if kind in ("Deployment", "StatefulSet"):
            own = spec["template"]["metadata"]["labels"]
            chosen = [pod for pod in every if matches(spec["selector"], pod.labels)]
            if not matches(spec["selector"], own) or len(chosen) != 1:
                yield f"{named(item)}: selects {[pod.where for pod in chosen]}"
        elif kind == "Service":
            yield from _service(item, every)
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            chosen = [pod for pod in every if matches(spec["selector"], pod.labels)]
            if not chosen:
                yield f"{named(item)}: selects no pod"
            for port in (e["port"] for e in spec.get("podMetricsEndpoints", [])):
                if not any(port in ports(pod) for pod in chosen):
                    yield f"{named(item)}: no port {port}"
        elif kind == "NetworkPolicy":
            if not any(matches(spec["podSelector"], pod.labels) for pod in every):
                yield f"{named(item)}: selects no pod"
        elif kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if target["name"] not in names(objects, target["kind"]):
                yield f"{named(item)}: no {target['kind']} {target['name']}"
    yield from _probes(every)


def _service(item: Object, every: list[Pod]) -> Iterator[str]:
    chosen = [
        pod for pod in every if matches({"matchLabels": item["spec"]["selector"]}, pod.labels)
    ]
    if not chosen:
        yield f"{named(item)}: selects no pod"
    for pod in chosen:
        for port in item["spec"]["ports"]:
            if port["targetPort"] not in ports(pod):
                yield f"{named(item)}: {pod.where} has no port {port['targetPort']}"


def _probes(every: list[Pod]) -> Iterator[str]:
    for pod in every:
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                action = container.get(probe, {})
                how = action.get("httpGet", action.get("tcpSocket", {}))
                if how and how["port"] not in ports(pod):
                    yield f"{pod.where}: {probe} asks a port that is not there"


def ports(pod: Pod) -> dict[str, int]:
    """Ports by name."""
    listed = [port for container in pod.containers for port in container.get("ports", [])]
    return {port["name"]: port["containerPort"] for port in listed}

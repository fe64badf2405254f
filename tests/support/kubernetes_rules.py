"""What every manifest must keep. Each rule takes an overlay's objects and gives what breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.operator.objects import leaves
from tests.support.kubernetes_objects import Object, cluster_spec, pods

LABELS = ("name", "part-of", "component", "version", "managed-by")
CLUSTER_SCOPED = ("Namespace", "PriorityClass")
GIVEN_SECRETS = {"aalnet-s3", "aalnet-api-keys"}  # made by a person: docs/kubernetes.md
# Pod Security `restricted` leaves room; all our pods have these very words, and no exception.
POD_SECURITY = {
    "fsGroup": 10001, "runAsGroup": 10001, "runAsNonRoot": True, "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}  # fmt: skip
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
SECRET_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL)", re.IGNORECASE)
SECRET_TEXT = re.compile(r"A(KIA|SIA)[A-Z0-9]{16}|-----BEGIN|eyJ[\w-]{20,}\.")


def named(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def pod_security(objects: list[Object]) -> Iterator[str]:
    """Pod Security `restricted`, a read-only root too, for every container that will run."""
    for pod in pods(objects):
        if pod.spec.get("securityContext") != POD_SECURITY:
            yield f"{pod.where}: securityContext {pod.spec.get('securityContext')}"
        yield from (f"{pod.where}: {key}" for key in pod.spec if key.startswith("host"))
        for volume in pod.spec.get("volumes", []):
            if kinds := set(volume) - {"name"} - VOLUMES:
                yield f"{pod.where}: volume {volume['name']} is a {kinds.pop()}"
        for container in pod.containers + pod.spec.get("ephemeralContainers", []):
            where = f"{pod.where} {container['name']}"
            if container.get("securityContext") != CONTAINER_SECURITY:
                yield f"{where}: securityContext {container.get('securityContext')}"
            if any(port.get("hostPort") for port in container.get("ports", [])):
                yield f"{where}: hostPort"


def api_tokens(objects: list[Object]) -> Iterator[str]:
    """Beyond `restricted`: no API token but where Ray's autoscaler runs."""
    scaled = {
        f"{named(item)} head" for item in objects
        if (cluster_spec(item) or {}).get("enableInTreeAutoscaling")
    }  # fmt: skip
    accounts = {i["metadata"]["name"]: i for i in objects if i["kind"] == "ServiceAccount"}
    for pod in pods(objects):
        account = accounts.get(pod.spec.get("serviceAccountName", "default"), {})
        by_account = account.get("automountServiceAccountToken", True)
        mounted = pod.spec.get("automountServiceAccountToken", by_account)
        if mounted and pod.where not in scaled and not pod.where.endswith("head"):
            yield f"{pod.where}: has a token of the Kubernetes API, and no use for it"
        if not mounted and pod.where in scaled:
            yield f"{pod.where}: the autoscaler has no token"


def resources(objects: list[Object]) -> Iterator[str]:
    """Requests and limits everywhere; memory and GPUs are never promised twice."""
    for pod in pods(objects):
        for container in pod.containers:
            where = f"{pod.where} {container['name']}"
            needs = container.get("resources", {})
            requests, limits = needs.get("requests", {}), needs.get("limits", {})
            for kind in ("cpu", "memory"):
                if kind not in requests:
                    yield f"{where}: no request of {kind}"
                if kind not in limits:
                    yield f"{where}: no limit of {kind}"
            gpus = [key for key in {**requests, **limits} if key.endswith("/gpu")]
            if any(requests.get(key) != limits.get(key) for key in gpus):
                yield f"{where}: GPUs requested and limited differ"


def images(objects: list[Object]) -> Iterator[str]:
    """A tag that stays: never `latest`, never none."""
    for pod in pods(objects):
        for container in pod.containers:
            image = container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest") and "@sha256:" not in image:
                yield f"{pod.where} {container['name']}: image {image}"


def secrets(objects: list[Object]) -> Iterator[str]:
    """No secret in any file, by kind, by name or by look."""
    for item in objects:
        if item["kind"] == "Secret":
            yield f"{named(item)} is a Secret"
        for path, value in leaves(item):
            if isinstance(value, str) and SECRET_TEXT.search(value):
                yield f"{named(item)} {path}: looks like a secret"
    for pod in pods(objects):
        for variable in (v for c in pod.containers for v in c.get("env", [])):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{pod.where}: {variable['name']} stands in the file"
    for item in objects:
        if item["kind"] == "ConfigMap":
            for key in item.get("data", {}):
                if SECRET_NAME.search(key):
                    yield f"{named(item)}: {key} stands in the file"


def labels(objects: list[Object], version: str) -> Iterator[str]:
    """Every object says what it is; all say one version."""
    for item in objects:
        present = item["metadata"].get("labels", {})
        for label in LABELS:
            if f"app.kubernetes.io/{label}" not in present:
                yield f"{named(item)}: no label {label}"
        if present.get("app.kubernetes.io/version", version) != version:
            yield f"{named(item)}: version {present['app.kubernetes.io/version']}, not {version}"
        scoped = item["kind"] in CLUSTER_SCOPED
        if item["metadata"].get("namespace") != (None if scoped else "aalnet"):
            yield f"{named(item)}: namespace {item['metadata'].get('namespace')}"
    for pod in pods(objects):
        if pod.labels.get("app.kubernetes.io/name") != "aalnet":
            yield f"{pod.where}: its pods have no label name"

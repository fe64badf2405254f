"""What every manifest must keep. Each rule takes an overlay's objects and gives what breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.support.kubernetes_objects import Object, Pod, cluster_spec, pods

LABELS = ("name", "part-of", "component", "version", "managed-by")
CLUSTER_SCOPED = ("Namespace", "PriorityClass")
GIVEN_SECRETS = {"aalnet-s3", "aalnet-api-keys"}  # made by a person: docs/kubernetes.md
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECRET_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL)", re.IGNORECASE)
SECRET_TEXT = re.compile(r"A(KIA|SIA)[A-Z0-9]{16}|-----BEGIN|eyJ[\w-]{20,}\.")


def named(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def pod_security(objects: list[Object]) -> Iterator[str]:
    """Pod Security `restricted`, the whole of it."""
    for pod in pods(objects):
        yield from (f"{pod.where}: {told}" for told in _pod_level(pod))
        for container in pod.containers + pod.spec.get("ephemeralContainers", []):
            told_at = f"{pod.where} {container['name']}"
            yield from (f"{told_at}: {told}" for told in _container_level(pod, container))


def _pod_level(pod: Pod) -> Iterator[str]:
    spec, security = pod.spec, pod.spec.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {kinds.pop()}"
    for sysctl in security.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _common(security)


def _common(security: Object) -> Iterator[str]:
    if security.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if security.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if security.get("seccompProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield "seccompProfile is Unconfined"
    if security.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "appArmorProfile is Unconfined"
    selinux = security.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"


def _container_level(pod: Pod, container: Object) -> Iterator[str]:
    of_pod, own = pod.spec.get("securityContext", {}), container.get("securityContext", {})
    yield from _common(own)
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities are not dropped"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    profile = own.get("seccompProfile", of_pod.get("seccompProfile", {}))
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile is not RuntimeDefault"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"


def hardening(objects: list[Object]) -> Iterator[str]:
    """Beyond `restricted`: a read-only root, and no API token but where Ray's autoscaler runs."""
    scaled = {
        f"{named(item)} head" for item in objects
        if (cluster_spec(item) or {}).get("enableInTreeAutoscaling")
    }  # fmt: skip
    accounts = {i["metadata"]["name"]: i for i in objects if i["kind"] == "ServiceAccount"}
    for pod in pods(objects):
        for container in pod.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{pod.where} {container['name']}: the root file system is not read-only"
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
            asked = container.get("resources", {})
            requests, limits = asked.get("requests", {}), asked.get("limits", {})
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


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{index}")
    else:
        yield path, value


def labels(objects: list[Object], version: str) -> Iterator[str]:
    """Every object says what it is; all say one version."""
    for item in objects:
        given = item["metadata"].get("labels", {})
        for label in LABELS:
            if f"app.kubernetes.io/{label}" not in given:
                yield f"{named(item)}: no label {label}"
        if given.get("app.kubernetes.io/version", version) != version:
            yield f"{named(item)}: version {given['app.kubernetes.io/version']}, not {version}"
        scoped = item["kind"] in CLUSTER_SCOPED
        if item["metadata"].get("namespace") != (None if scoped else "aalnet"):
            yield f"{named(item)}: namespace {item['metadata'].get('namespace')}"
    for pod in pods(objects):
        if pod.labels.get("app.kubernetes.io/name") != "aalnet":
            yield f"{pod.where}: its pods have no label name"

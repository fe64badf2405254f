"""What the tests' API server answers: objects, discovery, access reviews, logs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tests.support.kube_store import KINDS, Object, Objects, Refusal

APPLY = "application/apply-patch+yaml"


class ClusterState:
    """What the cluster holds, and what its user may not do."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.logs: dict[str, list[str]] = {}  # pod: lines, each with its time
        self.open_logs: set[str] = set()  # pods whose logs go on
        self.forbidden: set[tuple[str, str]] = set()  # verb, resource
        self.missing: set[str] = set()  # groups that are not installed
        self.warnings: list[str] = []  # of every answer to a patch
        self.version = "v1.34.1"
        self.stopping = threading.Event()


@dataclass(frozen=True)
class Request:
    """As it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Object | None


@dataclass(frozen=True)
class Place:
    """What a path is about."""

    kind: str
    namespace: str = ""
    name: str | None = None
    part: str = ""


def place_of(path: str, missing: set[str]) -> Place | None:
    """`/apis/ray.io/v1/namespaces/aalnet/rayjobs/x/log`, read from left to right."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    version = "/".join(parts[1:3]) if parts[0] == "apis" else parts[1]
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = ""
    if not rest:
        return None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    for kind, (of_kind, plural, _) in KINDS.items():
        if of_kind == version and plural == rest[0] and version.split("/")[0] not in missing:
            return Place(kind, namespace, *rest[1:3])
    return None


def special_answer(state: ClusterState, request: Request) -> Object | None:
    """Version, discovery and access reviews."""
    if request.path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": state.version, "platform": "linux/amd64"}
    if request.path.endswith("/selfsubjectaccessreviews"):
        assert request.method == "POST"
        assert request.body is not None
        attributes = request.body["spec"]["resourceAttributes"]
        resource = "/".join(attributes[k] for k in ("resource", "subresource") if attributes.get(k))
        allowed = (attributes["verb"], resource) not in state.forbidden
        return {**request.body, "status": {"allowed": allowed}}
    parts = request.path.strip("/").split("/")
    if parts[0] != "apis" or not 2 <= len(parts) <= 3 or parts[1] in state.missing:
        return None
    versions = {version for version, _, _ in KINDS.values() if version.startswith(f"{parts[1]}/")}
    if parts[1] in ("metrics.k8s.io", "custom.metrics.k8s.io"):
        versions = {f"{parts[1]}/v1beta1"}
    if len(parts) == 2 and versions:
        return {"kind": "APIGroup", "apiVersion": "v1", "name": parts[1], "versions": [
            {"groupVersion": version, "version": version.split("/")[1]}
            for version in sorted(versions)]}  # fmt: skip
    if "/".join(parts[1:]) in versions:
        resources = [{"name": plural, "kind": kind} for kind, (version, plural, _) in KINDS.items()
                     if version == "/".join(parts[1:])]  # fmt: skip
        return {"kind": "APIResourceList", "groupVersion": "/".join(parts[1:]),
                "resources": resources}  # fmt: skip
    return None


def check_permission(state: ClusterState, request: Request, place: Place) -> None:
    verbs = {"GET": "get" if place.name else "list", "PATCH": "patch", "DELETE": "delete"}
    verb, (version, plural, _) = verbs[request.method], KINDS[place.kind]
    resource = f"{plural}/{place.part}" if place.part else plural
    if (verb, resource) in state.forbidden:
        group = version.partition("/")[0] if "/" in version else ""
        where = (
            f'in the namespace "{place.namespace}"' if place.namespace else "at the cluster scope"
        )
        raise Refusal(403, "Forbidden", (
            f'{plural} is forbidden: User "alice" cannot {verb} resource "{resource}" in API group '
            f'"{group}" {where}'))  # fmt: skip


def object_answer(state: ClusterState, request: Request, place: Place) -> tuple[int, Object]:
    if request.method == "GET" and place.name is None:
        items = [item for item in state.objects.list(place.kind, place.namespace or None)
                 if _selected(item, request.query)]  # fmt: skip
        bare = [{k: v for k, v in i.items() if k not in ("kind", "apiVersion")} for i in items]
        return 200, {"kind": f"{place.kind}List", "apiVersion": KINDS[place.kind][0],
                     "metadata": {}, "items": bare}  # fmt: skip
    assert place.name is not None
    if request.method == "GET":
        return 200, state.objects.get(place.kind, place.namespace, place.name)
    if request.method == "DELETE":
        options = request.body or {}
        return 200, state.objects.delete(place.kind, place.namespace, place.name, options)
    return _patch(state, request, place)


def _patch(state: ClusterState, request: Request, place: Place) -> tuple[int, Object]:
    query, item = request.query, request.body
    if request.headers.get("Content-Type") != APPLY or request.method != "PATCH":
        raise Refusal(415, "UnsupportedMediaType", (
            "the body of the request was in an unknown format - accepted media types include: "
            f"application/json-patch+json, application/merge-patch+json, {APPLY}"))  # fmt: skip
    if not query.get("fieldManager"):
        raise Refusal(422, "Invalid", (
            'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for '
            "apply patch"))  # fmt: skip
    if query.get("dryRun") not in (None, "All") or query.get("fieldValidation") != "Strict":
        raise Refusal(400, "BadRequest", f"unexpected query {query}")
    assert item is not None
    metadata = item["metadata"]
    if metadata.get("managedFields"):
        raise Refusal(400, "BadRequest", "metadata.managedFields must be nil")
    if (item["kind"], metadata["name"], metadata.get("namespace", "")) != (
        place.kind, place.name, place.namespace,
    ):  # fmt: skip
        raise Refusal(
            400, "BadRequest", "the name of the object does not match the name on the URL"
        )
    result, new = state.objects.apply(
        item, query["fieldManager"], force=query.get("force") == "true",
        dry_run=query.get("dryRun") == "All",
    )  # fmt: skip
    return 201 if new else 200, result


def _selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = pair.partition("=")
        if labels.get(key) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = pair.partition("=")
        value: Any = item
        for part in key.split("."):
            value = value.get(part, {})
        if value != value:
            return False
    return True


def log_answer(state: ClusterState, request: Request, place: Place) -> Iterator[bytes]:
    assert place.name is not None
    pod = state.objects.get("Pod", place.namespace, place.name)
    container = request.query["container"]
    if container not in [item["name"] for item in pod["spec"]["containers"]]:
        raise Refusal(400, "BadRequest", f"container {container} is not valid for pod {place.name}")
    return _log_lines(state, request, place.name)


def _log_lines(state: ClusterState, request: Request, pod: str) -> Iterator[bytes]:
    lines = state.logs.get(pod, [])
    since = request.query.get("sinceTime", "")[:19]  # whole seconds, as the kubelet takes it
    first = len(lines) - int(request.query.get("tailLines", len(lines)))
    while True:
        for line in lines[max(0, first) :]:
            if line[:19] >= since:
                yield (line + "\n").encode()
        first = len(lines)
        if request.query.get("follow") != "true" or pod not in state.open_logs:
            return
        if state.stopping.wait(0.05):
            return
        lines = state.logs[pod]

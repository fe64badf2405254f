"""Objects as an API server keeps them: versions, server-side apply, field managers, deletion.

What it says, it says in a real server's words (recorded from kube-apiserver).
"""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]
Key = tuple[str, str, str]  # kind, namespace, name
# kind: (group/version, plural, namespaced)
KINDS: dict[str, tuple[str, str, bool]] = {
    "ConfigMap": ("v1", "configmaps", True),
    "Event": ("v1", "events", True),
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "Pod": ("v1", "pods", True),
    "Service": ("v1", "services", True),
    "Deployment": ("apps/v1", "deployments", True),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers", True),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets", True),
    "StorageClass": ("storage.k8s.io/v1", "storageclasses", False),
    "RayJob": ("ray.io/v1", "rayjobs", True),
    "RayService": ("ray.io/v1", "rayservices", True),
    "RayCluster": ("ray.io/v1", "rayclusters", True),
    "PodMonitor": ("monitoring.coreos.com/v1", "podmonitors", True),
    "PrometheusRule": ("monitoring.coreos.com/v1", "prometheusrules", True),
    "Workload": ("kueue.x-k8s.io/v1beta2", "workloads", True),
    "LocalQueue": ("kueue.x-k8s.io/v1beta2", "localqueues", True),
}
NOT_OWNED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"),
             ("metadata", "resourceVersion"), ("metadata", "uid")}  # fmt: skip


class Refusal(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code,
        }  # fmt: skip


class Objects:
    """All objects of a server."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._items: dict[Key, Object] = {}
        self._versions = itertools.count(101)

    def put(self, item: Object) -> Object:
        """Make or replace an object behind the API's back, as a controller does."""
        with self._lock:
            result = copy.deepcopy(item)
            metadata = result["metadata"]
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", "2026-11-20T08:00:00Z")
            metadata.setdefault("labels", {})
            return self._store(result)

    def edit(self, kind: str, name: str, change: Callable[[Object], None]) -> None:
        """Change an object in place, as a controller does."""
        with self._lock:
            key = next(key for key in self._items if key[0] == kind and key[2] == name)
            item = copy.deepcopy(self._items[key])
            change(item)
            self._store(item)

    def get(self, kind: str, namespace: str, name: str) -> Object:
        with self._lock:
            item = self._items.get((kind, namespace, name))
        if item is None:
            raise not_found(kind, name)
        return copy.deepcopy(item)

    def list(self, kind: str, namespace: str | None = None) -> list[Object]:
        with self._lock:
            return [
                copy.deepcopy(item) for key, item in sorted(self._items.items())
                if key[0] == kind and namespace in (None, key[1])
            ]  # fmt: skip

    def names(self) -> set[str]:
        """`RayJob/x` of everything there is."""
        with self._lock:
            return {f"{kind}/{name}" for kind, _, name in self._items}

    def delete(self, kind: str, namespace: str, name: str, options: Object) -> Object:
        """Finalizers hold it back, as on a real server."""
        with self._lock:
            item = self.get(kind, namespace, name)
            uid = options.get("preconditions", {}).get("uid")
            if uid is not None and uid != item["metadata"]["uid"]:
                raise Refusal(409, "Conflict", (
                    f"Operation cannot be fulfilled on {resource_of(kind)} \"{name}\": "
                    f"Precondition failed: UID in precondition: {uid}, UID in object meta: "
                    f"{item['metadata']['uid']}"))  # fmt: skip
            if item["metadata"].get("finalizers"):
                item["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
                return self._store(item)
            return self.forget(kind, namespace, name)

    def forget(self, kind: str, namespace: str, name: str) -> Object:
        """Take it away for good."""
        with self._lock:
            return self._items.pop((kind, namespace, name))

    def apply(
        self, item: Object, manager: str, *, force: bool = False, dry_run: bool = False
    ) -> tuple[Object, bool]:
        """Server-side apply; the object as it then is, and whether it is new."""
        kind, metadata = item["kind"], item["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        with self._lock:
            if KINDS[kind][2] and ("Namespace", "", namespace) not in self._items:
                raise not_found("Namespace", namespace)
            live = self._items.get((kind, namespace, name))
            version = metadata.get("resourceVersion")
            if version is not None and (
                live is None or version != live["metadata"]["resourceVersion"]
            ):
                raise Refusal(409, "Conflict", (
                    f"Operation cannot be fulfilled on {resource_of(kind)} \"{name}\": the object "
                    "has been modified; please apply your changes to the latest version and try "
                    "again"), name=name)  # fmt: skip
            result = merged(live, item, manager, force=force)
            if live is None:
                result["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1,
                                     "creationTimestamp": "2026-11-20T08:00:00Z"}  # fmt: skip
            elif result.get("spec") != live.get("spec"):
                result["metadata"]["generation"] = live["metadata"].get("generation", 1) + 1
            if not dry_run and result != live:
                result = self._store(result)
            return copy.deepcopy(result), live is None

    def _store(self, item: Object) -> Object:
        metadata = item["metadata"]
        key = (item["kind"], metadata.get("namespace", ""), metadata["name"])
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            return self.forget(*key)
        item["metadata"]["resourceVersion"] = str(next(self._versions))
        self._items[key] = item
        return copy.deepcopy(item)


def merged(live: Object | None, item: Object, manager: str, *, force: bool) -> Object:
    """What apply makes of an object, by the fields that each manager owns.

    Raises:
        Refusal: a field with another value is another manager's.
    """
    fields = {path: value for path, value in leaves(item) if path not in NOT_OWNED}
    result = copy.deepcopy(live) if live is not None else with_defaults(item)
    managers = {
        entry["manager"]: {tuple(path) for path in entry["fieldsV1"]["paths"]}
        for entry in result["metadata"].pop("managedFields", [])
    }
    there = dict(leaves(result))
    causes = [
        {"reason": "FieldManagerConflict", "field": dotted(path),
         "message": f'conflict with "{other}" using {item["apiVersion"]}'}
        for other, owned in managers.items() if other != manager
        for path in sorted(owned & fields.keys()) if there.get(path) != fields[path]
    ]  # fmt: skip
    if causes and not force:
        text = ", ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
        raise Refusal(409, "Conflict",
                      f"Apply failed with {len(causes)} conflict{'s' * (len(causes) > 1)}: {text}",
                      causes=causes)  # fmt: skip
    for other, owned in managers.items():
        if other != manager:
            managers[other] = {p for p in owned if there.get(p) == fields.get(p, there.get(p))}
    others = set().union(*(owned for other, owned in managers.items() if other != manager))
    for path in managers.get(manager, set()) - fields.keys() - others:
        remove(result, path)
    for path, value in fields.items():
        put(result, path, copy.deepcopy(value))
    managers[manager] = set(fields)
    result["metadata"]["managedFields"] = [
        {"manager": name, "operation": "Apply", "apiVersion": item["apiVersion"],
         "fieldsType": "FieldsV1", "fieldsV1": {"paths": sorted(map(list, owned))}}
        for name, owned in managers.items() if owned
    ]  # fmt: skip
    return result


def with_defaults(item: Object) -> Object:
    """A new object as admission leaves it: what is not said is filled in."""
    result = copy.deepcopy(item)
    if item["kind"] == "Deployment":
        result["spec"].setdefault("replicas", 1)
    if item["kind"] == "Service":
        result["spec"] |= {"clusterIP": "10.96.14.7", "sessionAffinity": "None"}
    if item["kind"] == "RayJob":
        result["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
    return result


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Lists are atomic here, as most lists in a CRD are."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def dotted(path: Path) -> str:
    return "." + ".".join(path)


def put(item: Object, path: Path, value: Any) -> None:
    for key in path[:-1]:
        item = item.setdefault(key, {})
    item[path[-1]] = value


def remove(item: Object, path: Path) -> None:
    for key in path[:-1]:
        item = item.get(key, {})
    item.pop(path[-1], None)


def resource_of(kind: str) -> str:
    """`rayjobs.ray.io`, as messages name it."""
    version, plural, _ = KINDS[kind]
    return f"{plural}.{version.partition('/')[0]}" if "/" in version else plural


def not_found(kind: str, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{resource_of(kind)} "{name}" not found',
                   name=name, kind=KINDS[kind][1])  # fmt: skip

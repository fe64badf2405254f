"""What `aalnet deploy delete` takes away: what it made, by label and by field manager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.operator.api import Cluster
from deploy.operator.errors import Missing
from deploy.operator.execute import wait_gone
from deploy.operator.objects import (
    INSTANCE,
    JOBS,
    KINDS,
    MADE_BY,
    MANAGER,
    PART,
    SERVERS,
    Component,
    Object,
    title,
)


@dataclass(frozen=True)
class Removal:
    """What goes, and what looks like it and stays: somebody else made it."""

    ours: Sequence[Object]
    others: Sequence[Object]


def found(cluster: Cluster, component: Component, namespace: str, name: str) -> Removal:
    """The objects of one component of this name, workloads first."""
    ours: list[Object] = []
    others: list[Object] = []
    for kind, api_version in KINDS.items():
        try:
            items = cluster.list(api_version, kind, namespace, {PART: component, INSTANCE: name})
        except Missing:  # a cluster without KubeRay has no RayJobs
            continue
        for item in items:
            (ours if is_ours(item) else others).append(item)
    return Removal(ours, others)


def is_ours(item: Object) -> bool:
    """Whether `aalnet deploy apply` made it: its label, and its fields' manager, say so."""
    metadata = item["metadata"]
    applied = any(
        entry.get("manager") == MANAGER and entry.get("operation") == "Apply"
        for entry in metadata.get("managedFields") or []
    )
    return applied and metadata.get("labels", {}).get(MADE_BY) == MANAGER


def remove(cluster: Cluster, items: Sequence[Object], tell: Callable[[str], None]) -> None:
    """Delete these very objects; workloads are waited for. Raises TimedOut, Changed."""
    for item in items:
        tell(f"delete {title(item)}")
        cluster.delete(item)
    for item in items:
        if item["kind"] in (*JOBS, *SERVERS):
            wait_gone(cluster, item)

"""One look at a workload: its state, its pods, why they wait, how far it has come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.operator.api import Cluster
from deploy.operator.errors import ClusterError
from deploy.operator.objects import INSTANCE, JOBS, PART, Object
from deploy.operator.pods import counted, troubles
from deploy.operator.state import State, state_of

IMAGES = re.compile(r"\b(?:images|at) (\d[\d,]*)/(\d[\d,]*)")
QUEUE = "kueue.x-k8s.io/queue-name"
TAIL_LINES = 40
SUBMITTER = "submitter"


@dataclass(frozen=True)
class View:
    """What a look found: `images` seen and to see, `said` the log's last line."""

    state: State
    pods: str
    waiting: Sequence[str] = ()
    images: tuple[int, int] | None = None
    said: str = ""


def look(cluster: Cluster, item: Object) -> View:
    """Look at a RayJob, a RayService or a Deployment as just read."""
    state = state_of(item)
    pods = pods_of(cluster, item)
    if state.outcome == "done":
        waiting: list[str] = []
    else:
        names = _family(item, pods)
        events = [event for event in _warnings(cluster, item) if _about(event) in names]
        waiting = [*_queued(cluster, item, state), *troubles(pods, events)]
    images, said = _progress(cluster, pods) if item["kind"] in JOBS else (None, "")
    return View(state, counted(pods), waiting, images, said)


def pods_of(cluster: Cluster, item: Object) -> list[Object]:
    """All pods of a workload, those of the submitter too, the oldest first."""
    labels = item["metadata"].get("labels", {})
    wanted = {labels.get(PART), SUBMITTER if item["kind"] in JOBS else None}
    chosen = {INSTANCE: labels.get(INSTANCE, item["metadata"]["name"])}
    pods = [
        pod
        for pod in cluster.list("v1", "Pod", item["metadata"]["namespace"], chosen)
        if pod["metadata"]["labels"].get(PART) in wanted
    ]
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def submitters(pods: Sequence[Object]) -> list[Object]:
    """The pods whose logs are the driver's."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(PART) == SUBMITTER]


def _family(item: Object, pods: Sequence[Object]) -> set[str]:
    """Names that events may be about: of the workload, its Ray clusters, replica sets, pods."""
    status = item.get("status", {})
    found = {item["metadata"]["name"], status.get("rayClusterName")}
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        found.add((status.get(part) or {}).get("rayClusterName"))
    for pod in pods:
        owners = pod["metadata"].get("ownerReferences", [])
        found |= {pod["metadata"]["name"], *(owner["name"] for owner in owners)}
    return {name for name in found if name}


def _warnings(cluster: Cluster, item: Object) -> list[Object]:
    return cluster.list("v1", "Event", item["metadata"]["namespace"], None, {"type": "Warning"})


def _about(event: Object) -> str:
    return str(event.get("involvedObject", {}).get("name", ""))


def _queued(cluster: Cluster, item: Object, state: State) -> list[str]:
    """What Kueue says of a job that it holds back."""
    queue = item["metadata"].get("labels", {}).get(QUEUE)
    if queue is None or "Suspended" not in state.status:
        return []
    versions = cluster.group_versions("kueue.x-k8s.io")
    if not versions:
        return [f"queued in {queue}, and the cluster has no Kueue"]
    workloads = cluster.list(
        f"kueue.x-k8s.io/{versions[0]}", "Workload", item["metadata"]["namespace"]
    )
    uid = item["metadata"]["uid"]
    for found in workloads:
        if any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", [])):
            for condition in found.get("status", {}).get("conditions", []):
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    return [f"queued in {queue}: {' '.join(condition['message'].split())[:240]}"]
    return [f"queued in {queue}"]


def _progress(cluster: Cluster, pods: Sequence[Object]) -> tuple[tuple[int, int] | None, str]:
    """How far the driver says it is; nothing where its log cannot be read just now."""
    begun = [pod for pod in submitters(pods) if pod["status"].get("phase") != "Pending"]
    if not begun:
        return None, ""
    container = begun[-1]["spec"]["containers"][0]["name"]
    try:
        lines = [
            line.decode("utf-8", "replace").partition(" ")[2].strip()
            for line in cluster.log(begun[-1], container, tail=TAIL_LINES)
        ]
    except ClusterError:  # the next look may read it
        return None, ""
    told = [line for line in lines if line]
    for line in reversed(told):
        if found := IMAGES.search(line):
            seen, total = (int(number.replace(",", "")) for number in found.groups())
            return (seen, total), told[-1]
    return None, told[-1] if told else ""

"""How a workload does: what its controller says, its pods, why they wait, how far it has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.operator.api import KubernetesApi
from deploy.operator.errors import KubernetesError
from deploy.operator.objects import COMPONENT_LABEL, INSTANCE_LABEL, JOB_KINDS, Object
from deploy.operator.pods import one_line, problems, ready_summary

FINAL_STATES = {"Complete", "Failed", "ValidationFailed"}  # KubeRay tries a RayJob no more
IMAGES = re.compile(r"\b(?:images|at) (\d[\d,]*)/(\d[\d,]*)")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TAIL_LINES = 40
SUBMITTER = "submitter"


@dataclass(frozen=True)
class ControllerState:
    """A controller's own word for a workload, what it means for one who waits, and why."""

    status: str
    outcome: Literal["going", "done", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class WorkloadStatus:
    """All there is to show of a workload. `images`: seen, and to see."""

    state: ControllerState
    pods: str
    waiting: Sequence[str] = ()
    images: tuple[int, int] | None = None
    log_line: str = ""


def workload_status(api: KubernetesApi, item: Object) -> WorkloadStatus:
    """Of a RayJob, a RayService or a Deployment as just read, with its pods, events and log."""
    state = controller_state(item)
    pods = pods_of(api, item)
    waiting: list[str] = []
    if state.outcome != "done":
        names = _names_in_events(item, pods)
        warnings = api.find_all("Event", item["metadata"]["namespace"], None, {"type": "Warning"})
        events = [event for event in warnings
                  if event.get("involvedObject", {}).get("name") in names]  # fmt: skip
        waiting = [*_queue_reasons(api, item, state), *problems(pods, events)]
    images, log_line = _progress(api, pods) if item["kind"] in JOB_KINDS else (None, "")
    return WorkloadStatus(state, ready_summary(pods), waiting, images, log_line)


def pods_of(api: KubernetesApi, item: Object) -> list[Object]:
    """All pods of a workload, those of the submitter too, the oldest first."""
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    components = {labels.get(COMPONENT_LABEL), SUBMITTER if item["kind"] in JOB_KINDS else None}
    instance = {INSTANCE_LABEL: labels.get(INSTANCE_LABEL, metadata["name"])}
    pods = [
        pod
        for pod in api.find_all("Pod", metadata["namespace"], instance)
        if pod["metadata"]["labels"].get(COMPONENT_LABEL) in components
    ]
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def submitter_pods(pods: Sequence[Object]) -> list[Object]:
    """The pods whose logs are the driver's."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(COMPONENT_LABEL) == SUBMITTER]


def controller_state(item: Object) -> ControllerState:
    """The state of a RayJob, a RayService or a Deployment."""
    if item["metadata"].get("deletionTimestamp"):
        return ControllerState("Deleting", "going")
    if item["kind"] == "RayJob":
        return _job_state(item.get("status", {}))
    status, generation = item.get("status", {}), item["metadata"].get("generation", 1)
    if status.get("observedGeneration", 0) < generation:
        return ControllerState("New", "going")
    if item["kind"] == "RayService":
        return _service_state(status)
    return _deployment_state(item["spec"], status)


def _job_state(status: Object) -> ControllerState:
    """A RayJob is done when its job has succeeded; failed when KubeRay tries it no more."""
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    reason = f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")
    if deployment not in FINAL_STATES:
        words = " ".join(word for word in (deployment or "New", job) if word)
        return ControllerState(words, "going", reason if deployment == "Retrying" else "")
    done = deployment == "Complete" and job == "SUCCEEDED"
    return ControllerState(f"{deployment} {job}".strip(), "done" if done else "failed", reason)


def _deployment_state(spec: Object, status: Object) -> ControllerState:
    """Done when all pods are of the newest template and ready, as `kubectl rollout status`."""
    replicas, ready = spec.get("replicas", 1), status.get("availableReplicas", 0)
    updated, existing = status.get("updatedReplicas", 0), status.get("replicas", 0)
    conditions = _conditions(status)
    failure = conditions.get("ReplicaFailure", {})
    reason = str(failure.get("message", "")) if failure.get("status") == "True" else ""
    words = f"{ready}/{replicas} ready"
    if conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
        return ControllerState(words, "failed", reason or "no progress in time")
    if updated < replicas or existing > updated or ready < updated:
        return ControllerState(f"{words}, {updated} new", "going", reason)
    return ControllerState(words, "done")


def _service_state(status: Object) -> ControllerState:
    """A RayService is done when the newest cluster answers, and no other is on its way."""
    conditions = _conditions(status)
    ready = conditions.get("Ready", {})
    message = str(ready.get("message", ""))
    if conditions.get("UpgradeInProgress", {}).get("status") == "True":
        return ControllerState("Upgrading", "going", message)
    if ready.get("status") == "True":
        return ControllerState("Ready", "done")
    return ControllerState(str(ready.get("reason", "New")), "going", message)


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or []}


def _names_in_events(item: Object, pods: Sequence[Object]) -> set[str]:
    """Of the workload, its Ray clusters, replica sets and pods."""
    status = item.get("status", {})
    names = {item["metadata"]["name"], status.get("rayClusterName")}
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        names.add((status.get(part) or {}).get("rayClusterName"))
    for pod in pods:
        owners = pod["metadata"].get("ownerReferences", [])
        names |= {pod["metadata"]["name"], *(owner["name"] for owner in owners)}
    return {name for name in names if name}


def _queue_reasons(api: KubernetesApi, item: Object, state: ControllerState) -> list[str]:
    """What Kueue says of a job that it holds back."""
    metadata = item["metadata"]
    queue = metadata.get("labels", {}).get(QUEUE_LABEL)
    if queue is None or "Suspended" not in state.status:
        return []
    versions = api.group_versions("kueue.x-k8s.io")
    if not versions:
        return [f"queued in {queue}, and the cluster has no Kueue"]
    version = f"kueue.x-k8s.io/{versions[0]}"
    for admission in api.find_all("Workload", metadata["namespace"], api_version=version):
        owners = admission["metadata"].get("ownerReferences", [])
        if any(owner["uid"] == metadata["uid"] for owner in owners):
            quota = _conditions(admission.get("status", {})).get("QuotaReserved", {})
            if quota.get("status") == "False":
                return [f"queued in {queue}: {one_line(quota['message'])}"]
    return [f"queued in {queue}"]


def _progress(api: KubernetesApi, pods: Sequence[Object]) -> tuple[tuple[int, int] | None, str]:
    """How far the driver says it is; nothing where its log cannot be read just now."""
    drivers = [pod for pod in submitter_pods(pods) if pod["status"].get("phase") != "Pending"]
    if not drivers:
        return None, ""
    container = drivers[-1]["spec"]["containers"][0]["name"]
    try:
        log = [line.decode("utf-8", "replace").partition(" ")[2].strip()
               for line in api.log(drivers[-1], container, tail=TAIL_LINES)]  # fmt: skip
    except KubernetesError:  # the next request may read it
        return None, ""
    lines = [line for line in log if line]
    for line in reversed(lines):
        if match := IMAGES.search(line):
            seen, total = (int(number.replace(",", "")) for number in match.groups())
            return (seen, total), lines[-1]
    return None, lines[-1] if lines else ""

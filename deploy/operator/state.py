"""How a workload does, from what its controller says of it: pure functions, no cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploy.operator.objects import Object

Outcome = Literal["going", "done", "failed"]
ENDED = {"Complete": "done", "Failed": "failed", "ValidationFailed": "failed"}


@dataclass(frozen=True)
class State:
    """A workload's own word, what it means for one who waits, and why."""

    status: str
    outcome: Outcome
    reason: str = ""


def state_of(item: Object) -> State:
    """The state of a RayJob, a RayService or a Deployment."""
    if item["metadata"].get("deletionTimestamp"):
        return State("Deleting", "going")
    return STATES[item["kind"]](item)


def job_state(job: Object) -> State:
    """A RayJob is done when its job has succeeded; failed when KubeRay tries it no more."""
    status = job.get("status", {})
    deployment, ran = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    words = f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")
    if deployment not in ENDED:
        told = " ".join(word for word in (deployment or "New", ran) if word)
        return State(told, "going", words if deployment == "Retrying" else "")
    done = deployment == "Complete" and ran == "SUCCEEDED"
    return State(f"{deployment} {ran}".strip(), "done" if done else "failed", words)


def deployment_state(deployment: Object) -> State:
    """Done when all pods are of the newest template and ready, as `kubectl rollout status`."""
    spec, status = deployment["spec"], deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 1):
        return State("New", "going")
    wanted, ready = spec.get("replicas", 1), status.get("availableReplicas", 0)
    conditions = _conditions(status)
    trouble = conditions.get("ReplicaFailure", {})
    reason = str(trouble.get("message", "")) if trouble.get("status") == "True" else ""
    if conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
        return State(f"{ready}/{wanted} ready", "failed", reason or "no progress in time")
    updated, every = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if updated < wanted or every > updated or ready < updated:
        return State(f"{ready}/{wanted} ready, {updated} new", "going", reason)
    return State(f"{ready}/{wanted} ready", "done")


def service_state(service: Object) -> State:
    """Done when the newest cluster answers, and no other is on its way."""
    status = service.get("status", {})
    if status.get("observedGeneration", 0) < service["metadata"].get("generation", 1):
        return State("New", "going")
    conditions = _conditions(status)
    ready = conditions.get("Ready", {})
    if conditions.get("UpgradeInProgress", {}).get("status") == "True":
        return State("Upgrading", "going", str(ready.get("message", "")))
    if ready.get("status") == "True":
        return State("Ready", "done")
    return State(str(ready.get("reason", "New")), "going", str(ready.get("message", "")))


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or []}


STATES = {"RayJob": job_state, "RayService": service_state, "Deployment": deployment_state}

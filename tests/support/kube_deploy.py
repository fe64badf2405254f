"""`aalnet deploy` against an API server of the tests."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aalnet.errors import AalnetError
from deploy.commands.deploy import app
from deploy.operator import api, execute, logs, render, wait
from tests.support.kube_api import KubeApi
from tests.support.kube_store import Object

IMAGE = "registry.example/aalnet:0.1.0"
TRAINER = ("apply", "trainer", "--overlay", "local", "--image", IMAGE)
JOB = "aalnet-trainer"  # the RayJob of TRAINER
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
KNOWN: dict[Path, list[Object]] = {}  # kubectl takes a second: a folder is rendered once
KUSTOMIZE = render.kustomize


@contextlib.contextmanager
def running_api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    """A server with our namespace, which KUBECONFIG leads to; pauses are short."""
    monkeypatch.setattr(api, "RETRIES", api.RETRIES.new(total=2, backoff_factor=0.01))
    monkeypatch.setattr(wait, "POLL_S", 0.1)
    monkeypatch.setattr(execute, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "POLL_S", 0.05)
    monkeypatch.setattr(render, "kustomize", _once)
    monkeypatch.delenv("AALNET_OVERLAY", raising=False)
    with KubeApi() as running:
        level = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": "aalnet", "labels": level}
        running.objects.put({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(folder)))
        yield running


def _once(folder: Path) -> list[Object]:
    if folder not in KNOWN:
        KNOWN[folder] = KUSTOMIZE(folder)
    return copy.deepcopy(KNOWN[folder])


def deploy(*words: str, answer: str | None = None) -> Result:
    """Run `aalnet deploy WORDS`; errors are in `exception`, as the front door gets them."""
    return CliRunner().invoke(app, list(words), input=answer)


def good(*words: str) -> Result:
    """Run it; it ends well."""
    result = deploy(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def fails(kind: type[AalnetError], *words: str) -> str:
    """Run it; it ends with an error of this kind, whose one line is given."""
    result = deploy(*words)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    message = str(result.exception)
    assert "\n" not in message
    return message


def job_status(kube: KubeApi, **values: Any) -> Callable[[], None]:
    """A call of the result gives the RayJob this status, as KubeRay's operator would."""
    return lambda: kube.objects.edit("RayJob", JOB, lambda job: job.update(status=values))


def pod(name: str, instance: str, component: str, **extra: Any) -> Object:
    """A pod as it stands in the cluster."""
    status = extra.pop("status", {"phase": "Pending"})
    labels = {"app.kubernetes.io/instance": instance, "app.kubernetes.io/component": component}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "aalnet", "labels": labels | extra},
        "spec": {"containers": [{"name": "main", "image": IMAGE}]}, "status": status,
    }  # fmt: skip


RUNNING = {
    "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"name": "main", "state": {"running": {}}}],
}  # fmt: skip


def event(about: str, reason: str, message: str) -> Object:
    """A warning, as controllers write them."""
    return {
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason,
        "message": message, "involvedObject": {"name": about},
        "metadata": {"name": f"{about}.{reason.lower()}", "namespace": "aalnet"},
    }  # fmt: skip

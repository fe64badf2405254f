"""The rules themselves: good manifests are broken in every way that a rule names; it says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from tests.support import kuberay_rules, kubernetes_references, kubernetes_rules
from tests.support.kubernetes_objects import Object, render, select
from tests.test_deploy_manifests import NEWEST, RULES

HEAD = "RayJob/aalnet-trainer spec rayClusterSpec headGroupSpec template spec"
CLUSTER = "RayJob/aalnet-trainer spec rayClusterSpec"
JOB = "RayJob/aalnet-trainer spec"
GROUP = f"{CLUSTER} workerGroupSpecs 0"
WORKER = f"{GROUP} template spec containers 0"
SERVICE = "RayService/aalnet-endpoint spec"
POD = "Deployment/aalnet-endpoint spec template spec"
CONTAINER = f"{POD} containers 0"
LABELS = "Service/aalnet-endpoint metadata labels"
MISSING = object()
# overlay, path, new value (MISSING: none), what the rule says
BROKEN: list[tuple[str, str, Any, str]] = [
    # Pod Security `restricted`, a read-only root, tokens
    ("aws", f"{POD} hostNetwork", True, "hostNetwork"),
    ("aws", f"{POD} volumes 1", {"name": "tmp", "hostPath": {"path": "/"}}, "is a hostPath"),
    ("aws", f"{POD} securityContext runAsUser", 0, "'runAsUser': 0"),
    ("aws", f"{POD} securityContext seccompProfile", MISSING, "endpoint: securityContext"),
    ("aws", f"{CONTAINER} securityContext privileged", True, "'privileged': True"),
    ("aws", f"{CONTAINER} securityContext readOnlyRootFilesystem", MISSING, "securityContext"),
    ("aws", f"{CONTAINER} ports 0 hostPort", 80, "hostPort"),
    ("aws", f"{CLUSTER} autoscalerOptions securityContext", MISSING, "autoscaler: securityCon"),
    ("aws", f"{JOB} submitterPodTemplate spec securityContext", MISSING, "submitter: securityC"),
    ("aws", f"{GROUP} template spec initContainers", [{"name": "i", "image": "a:1"}], " i: secur"),
    ("aws", "ServiceAccount/aalnet-head automountServiceAccountToken", False, "has no token"),
    ("aws", f"{POD} automountServiceAccountToken", True, "no use for it"),
    # resources and images
    ("aws", f"{CONTAINER} resources limits cpu", MISSING, "no limit of cpu"),
    ("aws", f"{CONTAINER} resources requests memory", MISSING, "no request of memory"),
    ("aws", f"{CLUSTER} autoscalerOptions resources", MISSING, "no request of cpu"),
    ("aws", f"{WORKER} resources requests nvidia.com/gpu", MISSING, "GPUs"),
    ("aws", f"{CONTAINER} image", "registry:5000/aalnet", "image registry"),
    ("aws", f"{CONTAINER} image", "aalnet:latest", "image aalnet:latest"),
    # secrets
    ("aws", f"{CONTAINER} env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}], "stands in"),
    ("aws", f"{CONTAINER} args 1", "AKIA" + "ABCDEFGHIJKLMNOP", "looks like a secret"),
    ("aws", "ConfigMap/aalnet-trainer-environment data API_TOKEN", "x", "API_TOKEN"),
    ("aws", "ResourceQuota/aalnet kind", "Secret", "is a Secret"),
    # references
    ("aws", f"{CONTAINER} envFrom 0 configMapRef name", "gone", "no ConfigMap gone"),
    ("aws", f"{HEAD} volumes 0 configMap name", "gone", "no ConfigMap gone"),
    ("aws", f"{POD} volumes 0 secret secretName", "gone", "gone is not documented"),
    ("aws", f"{POD} serviceAccountName", "gone", "no ServiceAccount gone"),
    ("aws", f"{POD} priorityClassName", "gone", "no PriorityClass gone"),
    ("aws", f"{CONTAINER} volumeMounts 0 name", "gone", "no volume gone"),
    ("aws", "RoleBinding/aalnet-operators roleRef name", "gone", "no Role gone"),
    # selectors
    ("aws", "Deployment/aalnet-endpoint spec selector matchLabels app", "x", "selects []"),
    ("aws", "Service/aalnet-endpoint spec selector app", "x", "selects no pod"),
    ("aws", "Service/aalnet-endpoint spec ports 0 targetPort", "web", "no port web"),
    ("aws", "PodDisruptionBudget/aalnet-endpoint spec selector matchLabels app", "x", "no pod"),
    ("aws", "PodMonitor/aalnet-heads spec selector matchLabels app", "x", "selects no pod"),
    ("aws", "PodMonitor/aalnet-heads spec podMetricsEndpoints 0 port", "gone", "no port gone"),
    ("aws", "NetworkPolicy/storage spec podSelector matchLabels", {"app": "x"}, "selects no pod"),
    ("aws", "HorizontalPodAutoscaler/aalnet-endpoint spec scaleTargetRef name", "x", "no Deploy"),
    ("aws", f"{CONTAINER} readinessProbe httpGet port", "web", "readinessProbe asks"),
    # KubeRay and Kueue
    ("aws", "RayJob/aalnet-trainer metadata name", "a" * 48, "at most 47"),
    ("aws", "RayJob/aalnet-trainer metadata name", "9lives", "at most 47"),
    ("aws", f"{JOB} submissionMode", "SidecarMode", "submissionMode SidecarMode"),
    ("aws", f"{JOB} deletionStrategy", {}, "deletionStrategy: add"),
    ("aws", f"{JOB} activeDeadlineSeconds", 0, "deadline"),
    ("aws", f"{JOB} shutdownAfterJobFinishes", MISSING, "GPUs stay idle"),
    ("aws", f"{JOB} ttlSecondsAfterFinished", -1, "negative"),
    ("aws", f"{JOB} runtimeEnvYAML", "pip", "runtimeEnvYAML"),
    ("aws", f"{JOB} submitterPodTemplate spec restartPolicy", "Always", "the submitter is a Job"),
    ("aws", f"{HEAD} restartPolicy", "Always", "autoscaler v2"),
    ("aws", f"{GROUP} suspend", True, "suspend not with autoscaling"),
    ("aws", f"{GROUP} rayStartParams labels", "a=b", "rayStartParams.labels"),
    ("aws", f"{GROUP} replicas", 9, "outside"),
    ("aws", f"{CLUSTER} headGroupSpec rayStartParams num-cpus", "4", "work would land"),
    ("aws", f"{CLUSTER} headGroupSpec resources", {"CPU": "0"}, "resources both"),
    ("aws", f"{CLUSTER} networkPolicy", {"mode": "DenyAll"}, "networkPolicy: add"),
    ("aws", f"{CLUSTER} authOptions", MISSING, "is not token"),
    ("aws", f"{CLUSTER} rayVersion", "2.51.1", "needs rayVersion"),
    ("rayservice", f"{SERVICE} upgradeStrategy", {"type": "None"}, "upgradeStrategy"),
    ("rayservice", f"{SERVICE} serveConfigV2", "x", "serveConfigV2"),
    ("kueue", f"{CLUSTER} enableInTreeAutoscaling", True, "elastic-job"),
    # labels
    ("aws", f"{LABELS} app.kubernetes.io/component", MISSING, "no la"),
    ("aws", f"{LABELS} app.kubernetes.io/version", "9", "version 9"),
    ("aws", "Service/aalnet-endpoint metadata namespace", "default", "namespace default"),
    ("aws", "PriorityClass/aalnet-head metadata namespace", "aalnet", "namespace aalnet"),
    ("aws", "Deployment/aalnet-endpoint spec template metadata labels", {}, "no label name"),
]  # fmt: skip


def break_it(objects: list[Object], path: str, value: Any) -> list[Object]:
    """A copy with one value changed, added or taken away."""
    broken = copy.deepcopy(objects)
    first, *keys, last = path.split(" ")
    place: Any = select(broken, *first.split("/"))
    for key in keys:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = value
    elif value is MISSING:
        del place[last]
    else:
        place[last] = value
    return broken


def complaints(objects: list[Object]) -> list[str]:
    every: list[Callable[[list[Object]], Any]] = [
        *RULES,
        lambda items: kubernetes_rules.labels(items, "0.1.0"),
    ]
    return [line for rule in every for line in rule(objects)]


@pytest.mark.parametrize(
    ("overlay", "path", "value", "expected"),
    BROKEN,
    ids=[f"{path.split()[-1]}-{expected}" for _, path, _, expected in BROKEN],
)
def test_a_broken_manifest_is_caught(overlay: str, path: str, value: Any, expected: str) -> None:
    broken = break_it(render(f"overlays/{overlay}"), path, value)
    assert [line for line in complaints(broken) if expected in line], complaints(broken)


CRD_BROKEN: list[tuple[str, Any]] = [
    (f"{JOB} entrypiont", "typo"),
    (f"{JOB} backoffLimit", "two"),
    (f"{JOB} deletionStrategy", {"deletionRules": [{"policy": "DeleteAll", "condition": {}}]}),
    (f"{CLUSTER} headGroupSpec", MISSING),
    (f"{GROUP} groupName", MISSING),
    (f"{GROUP} rayStartParams num-cpus", 2),
    (f"{WORKER} securityContext privilegd", False),
    ("RayJob/aalnet-trainer apiVersion", "ray.io/v2"),
]


@pytest.mark.parametrize(
    ("path", "value"), CRD_BROKEN, ids=[path.split()[-1] for path, _ in CRD_BROKEN]
)
def test_kuberays_crds_catch(path: str, value: Any) -> None:
    broken = break_it(render("overlays/aws"), path, value)
    assert kuberay_rules.crd_errors(select(broken, "RayJob", "aalnet-trainer"))


def test_a_default_is_as_good_as_a_value() -> None:
    broken = break_it(render("overlays/aws"), f"{GROUP} maxReplicas", MISSING)
    assert not kuberay_rules.crd_errors(select(broken, "RayJob", "aalnet-trainer"))


def test_kubernetes_schemas_catch_an_unknown_field() -> None:
    broken = break_it(render("overlays/aws"), f"{CONTAINER} readinesProbe", {})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(select(broken, "Deployment"), NEWEST, strict=True)


def test_label_selectors() -> None:
    def match(operator: str, **labels: str) -> bool:
        expression = {"key": "a", "operator": operator, "values": ["1"]}
        return kubernetes_references.matches({"matchExpressions": [expression]}, labels)

    assert match("In", a="1")
    assert not match("In", a="2")
    assert match("NotIn", b="1")
    assert match("Exists", a="2")
    assert not match("Exists")
    assert match("DoesNotExist", b="1")
    assert not match("DoesNotExist", a="1")

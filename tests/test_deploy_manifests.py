"""Every overlay, as kubectl renders it: valid, hardened, consistent, and as KubeRay wants it."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aalnet.settings import Settings, parse_settings
from aalnet.yaml_io import validate
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.settings import EndpointSettings
from tests.support import kuberay_rules, kubernetes_references, kubernetes_rules
from tests.support.kubernetes_objects import (
    COMPONENTS,
    OVERLAYS,
    Object,
    cluster_spec,
    pods,
    render,
    select,
)

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: what docs/kubernetes.md asks for, and today's
CUSTOM = ("ray.io", "monitoring.coreos.com", "kueue.x-k8s.io")
RULES = [
    kubernetes_rules.pod_security,
    kubernetes_rules.api_tokens,
    kubernetes_rules.resources,
    kubernetes_rules.images,
    kubernetes_rules.secrets,
    kubernetes_references.references,
    kubernetes_references.selectors,
    kuberay_rules.kuberay,
]


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(f"overlays/{request.param}")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(objects: list[Object], rule: Any) -> None:
    assert list(rule(objects)) == []


def test_labels(objects: list[Object]) -> None:
    assert list(kubernetes_rules.labels(objects, VERSION)) == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_valid_for_kubernetes(objects: list[Object], version: str) -> None:
    checked = 0
    for item in objects:
        if not item["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(item, version, strict=True)
            checked += 1
    assert checked > 20


def test_valid_by_kuberays_crds(objects: list[Object]) -> None:
    ours = [item for item in objects if item["apiVersion"].startswith("ray.io/")]
    assert ours
    assert [error for item in ours for error in kuberay_rules.crd_errors(item)] == []


def test_nothing_is_applied_twice(objects: list[Object]) -> None:
    result = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(result) == len(set(result))


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_alone_is_a_part_of_the_whole(overlay: str, component: str) -> None:
    whole, alone = render(f"overlays/{overlay}"), render(f"overlays/{overlay}/{component}")
    assert all(item in whole for item in alone)
    components = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in alone}
    assert components == {component}
    assert "Namespace" not in {item["kind"] for item in alone}  # its owner is somebody else


# Training


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_run_settings_and_workers_agree(overlay: str) -> None:
    objects = render(f"overlays/{overlay}/trainer")
    text = select(objects, "ConfigMap", "aalnet-trainer-settings")["data"]["run.yaml"]
    settings: Settings = parse_settings(yaml.safe_load(text))
    job = select(objects, "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    least, most = settings.run.worker_range or (0, 0)
    assert (least, most) == (1, group["maxReplicas"])
    assert group["replicas"] == group["minReplicas"]
    gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert (settings.run.device, gpus) == (("cpu", None) if overlay == "local" else ("cuda", "1"))
    assert settings.telemetry.host == "0.0.0.0"
    assert settings.data.train.startswith("/opt/aalnet/data/")  # where the Dockerfile puts it
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert settings.failures.grace_s < head["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_campaign_settings_and_workers_agree(overlay: str) -> None:
    from tuner.settings import parse_campaign

    objects = render(f"overlays/{overlay}/campaign")
    text = select(objects, "ConfigMap", "aalnet-campaign-settings")["data"]["campaign.yaml"]
    campaign = parse_campaign(yaml.safe_load(text))
    (group,) = select(objects, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert campaign.trials_at_once == group["maxReplicas"]
    assert campaign.workers == 1
    assert campaign.run_settings({}).telemetry.host == "0.0.0.0"


def test_cluster_versions_are_the_locked_ones(objects: list[Object]) -> None:
    locked = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (ray,) = re.findall(r"^ray==(\S+)", locked, re.MULTILINE)
    result = {cluster["rayVersion"] for item in objects if (cluster := cluster_spec(item))}
    assert result == {ray}
    for pod in pods(objects):
        for container in pod.containers:
            if "aalnet:" in container["image"]:
                assert container["image"].split(":")[1].startswith(VERSION)


def test_no_gpu_is_left_idle(objects: list[Object]) -> None:
    jobs = [item["spec"] for item in objects if item["kind"] == "RayJob"]
    assert len(jobs) == 2
    for spec in jobs:
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] <= 60
        assert spec["preRunningDeadlineSeconds"] <= 1800
        assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
        cluster = spec["rayClusterSpec"]
        assert cluster.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 60) <= 60
        for pod in cluster["workerGroupSpecs"]:
            assert pod["template"]["spec"]["terminationGracePeriodSeconds"] < 120  # a spot notice


def test_quota_holds_everything_at_its_largest(objects: list[Object]) -> None:
    hard = select(objects, "ResourceQuota")["spec"]["hard"]
    clusters = [cluster for item in objects if (cluster := cluster_spec(item))]
    gpus = workers = 0
    for cluster in clusters:
        for group in cluster["workerGroupSpecs"]:
            arguments = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            gpus += group["maxReplicas"] * int(arguments.get("nvidia.com/gpu", 0))
            workers += group["maxReplicas"]
    endpoints = [
        i["spec"]["maxReplicas"] + 1 for i in objects if i["kind"].startswith("Horizontal")
    ]
    submitters = sum(item["kind"] == "RayJob" for item in objects)
    assert gpus <= int(hard["requests.nvidia.com/gpu"])
    assert workers + len(clusters) + submitters + sum(endpoints) <= int(hard["pods"])


# The endpoint


def test_an_endpoint_pod_has_time_to_drain() -> None:
    for overlay in ("local", "aws", "kueue"):
        spec = select(render(f"overlays/{overlay}"), "Deployment")["spec"]
        rolling, pod = spec["strategy"]["rollingUpdate"], spec["template"]["spec"]
        (container,) = pod["containers"]
        pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        settings = EndpointSettings()
        assert rolling["maxUnavailable"] == 0
        assert rolling["maxSurge"] >= 1
        assert pause_s + settings.drain_s + 5 <= pod["terminationGracePeriodSeconds"]
        readiness = container["readinessProbe"]
        unready_s = readiness["periodSeconds"] * readiness["failureThreshold"]
        assert unready_s <= pause_s + settings.notice_s
        assert "replicas" not in spec


def test_the_autoscaler_asks_for_a_metric_that_there_is() -> None:
    metrics = select(render("overlays/aws"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metrics[0]["pods"]["metric"]["name"]
    assert name in {family.name for family in Metrics().registry.collect()}
    assert metrics[1]["resource"]["name"] == "cpu"
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())
    assert name in adapter["rules"]["custom"][0]["seriesQuery"]


def test_serve_config_is_what_serve_takes() -> None:
    with warnings.catch_warnings(action="ignore"):  # ray's own: fields in pydantic 1's manner
        from ray.serve.schema import ServeDeploySchema

        from deploy.endpoint.serve_app import ServeArguments

    service = select(render("overlays/rayservice"), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "deploy.endpoint.serve_app:build"
    arguments = validate(ServeArguments, application.args)
    environment = select(render("overlays/rayservice"), "ConfigMap", "aalnet-endpoint-environment")
    assert arguments.storage == environment["data"]["AALNET_STORAGE"]
    assert arguments.keys == "/etc/aalnet-keys/keys"


# What has no schema here: only fields that the operators of these kinds know

KNOWN = {
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "LocalQueue": {"clusterQueue"},
    "PrometheusRule": {"groups"},
}
KNOWN_ENDPOINT = {"port", "path", "relabelings", "interval"}


def test_custom_kinds_have_known_fields_only(objects: list[Object]) -> None:
    for item in objects:
        if item["kind"] in KNOWN:
            assert set(item["spec"]) == KNOWN[item["kind"]]
            for endpoint in item["spec"].get("podMetricsEndpoints", []):
                assert set(endpoint) <= KNOWN_ENDPOINT


def test_dashboards_are_found_by_grafana() -> None:
    maps = [
        item
        for item in render("base/monitoring")
        if item["kind"] == "ConfigMap"
        and item["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    files = sorted((ROOT / "deploy/kubernetes/base/monitoring/dashboards").glob("*.json"))
    result = {key: text for item in maps for key, text in item["data"].items()}
    assert result == {file.name: file.read_text(encoding="utf-8") for file in files}
    assert len(result) == 4
    assert all(len(text) < 2**20 for text in result.values())  # the most that a ConfigMap holds


def test_monitors_are_found_by_prometheus(objects: list[Object]) -> None:
    for item in objects:
        if item["kind"] in ("PodMonitor", "PrometheusRule"):
            assert item["metadata"]["labels"]["release"] == "prometheus"

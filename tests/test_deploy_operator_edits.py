"""What options change in the manifests: names, images, storage, settings, workers; and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aalnet.errors import ConfigError, UserError
from aalnet.settings import parse_settings
from deploy.operator.objects import Component, Object
from tests.support.kubernetes_objects import cluster_spec, select
from tests.support.overlay_edits import FILLED, IMAGE, edit


def run_settings(objects: list[Object]) -> dict[str, Any]:
    (text,) = (o["data"]["run.yaml"] for o in objects if "run.yaml" in o.get("data", {}))
    result: dict[str, Any] = yaml.safe_load(text)
    return result


def group_of(objects: list[Object]) -> Object:
    (job,) = (o for o in objects if o["kind"] == "RayJob")
    group: Object = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


def test_a_run_is_named_everywhere() -> None:
    job = select(edit("aws", "trainer", name="faces-2", **FILLED), "RayJob")
    assert job["spec"]["entrypoint"] == "aalnet train /etc/aalnet/run.yaml --run faces-2"
    campaign = select(edit("aws", "campaign", name="grid", **FILLED), "RayJob")
    assert campaign["spec"]["entrypoint"].endswith("--name grid")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["containers"][0]["envFrom"][0]["configMapRef"]["name"] == "faces-2-environment"
    assert head["volumes"][0]["configMap"]["name"] == "faces-2-settings"
    assert head["serviceAccountName"] == "aalnet-head"  # not an object of this component


def test_the_endpoints_hash_follows_its_storage() -> None:
    maps = [
        select(edit("aws", "endpoint", image=IMAGE, storage=storage), "ConfigMap")
        for storage in ("s3://a/x", "s3://b/x")
    ]
    assert len({item["metadata"]["name"] for item in maps}) == 2


@pytest.mark.parametrize(
    ("overlay", "workers", "replicas", "expected"),
    [
        ("aws", "2:6", (2, 2, 6), "2:6"),
        ("aws", "3", (3, 3, 3), 3),
        ("kueue", "2:6", (6, 6, 6), "2:6"),
    ],
)
def test_workers_agree(
    overlay: str, workers: str, replicas: tuple[int, ...], expected: int | str
) -> None:
    objects = edit(overlay, "trainer", workers=workers, **FILLED)
    group = group_of(objects)
    assert tuple(group[key] for key in ("replicas", "minReplicas", "maxReplicas")) == replicas
    assert run_settings(objects)["run"]["workers"] == expected


def test_workers_of_the_settings_decide_the_pods() -> None:
    assert group_of(edit("aws", "trainer", settings=["run.workers=2"]))["maxReplicas"] == 2
    campaign = edit("aws", "campaign", settings=["trials_at_once=3", "workers=2"])
    assert group_of(campaign)["maxReplicas"] == 6
    text = select(
        edit("aws", "campaign", workers="8", settings=["workers=2"]), "ConfigMap",
        "aalnet-campaign-settings",
    )["data"]["campaign.yaml"]  # fmt: skip
    assert yaml.safe_load(text)["trials_at_once"] == 4


def test_endpoint_workers_are_pods() -> None:
    scaler = select(edit("aws", "endpoint", workers="3:5"), "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 5)
    service = select(edit("rayservice", "endpoint", workers="4", model="faces"), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    assert config["deployments"][0]["num_replicas"] == 4
    assert config["args"]["model"] == "faces"
    (group,) = (cluster_spec(service) or {})["workerGroupSpecs"]
    assert {group[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {4}


@pytest.mark.parametrize("config", ["demo.yaml", "campaign-laptop.yaml"])
def test_a_config_file_takes_the_place_of_ours(repo_root: Path, config: str) -> None:
    component: Component = "campaign" if "campaign" in config else "trainer"
    objects = edit("local", component, config=repo_root / "configs" / config)
    settings = next(o for o in objects if o["metadata"]["name"].endswith("settings"))
    values = yaml.safe_load(next(iter(settings["data"].values())))
    assert isinstance(values.get("base", {}), dict)  # a base in a file of its own comes along
    run = values.get("base", values)
    assert run["telemetry"]["host"] == "0.0.0.0"
    parse_settings(run)


MISTAKES: list[tuple[str, Component, dict[str, Any], str]] = [
    ("aws", "trainer", {"name": "a" * 48}, "at most 47"),
    ("aws", "trainer", {"name": "Faces"}, "at most 47"),
    ("aws", "trainer", {"image": "aalnet"}, "NAME:TAG"),
    ("aws", "trainer", {"image": "registry:5000/aalnet"}, "NAME:TAG"),
    ("aws", "trainer", {"image": "aalnet:latest"}, "not latest"),
    ("aws", "trainer", {"storage": "./runs"}, "s3://bucket/prefix"),
    ("aws", "trainer", {"namespace": "a/b"}, "--namespace"),
    ("aws", "trainer", {"workers": "3:2"}, "MIN <= MAX"),
    ("aws", "trainer", {"workers": "0"}, "N or MIN:MAX"),
    ("aws", "trainer", {"workers": "500"}, "run.workers must be <= data.batch_images"),
    ("aws", "trainer", {"settings": ["objective.etta=1"]}, "did you mean `objective.eta`"),
    ("aws", "trainer", {"settings": ["run.workers=0"]}, "run.workers 0"),
    ("aws", "trainer", {"model": "faces"}, "--model is the endpoint's"),
    ("aws", "trainer", {"config": Path("gone.yaml")}, "does not exist"),
    ("aws", "campaign", {"settings": ["buget.trials=3"]}, "did you mean `budget"),
    ("aws", "campaign", {"workers": "1", "settings": ["workers=2"]}, "cannot hold one trial"),
    ("aws", "endpoint", {"settings": ["batch=1"]}, "`batch` is not a setting"),
    ("aws", "endpoint", {"config": Path("x.yaml")}, "--config is for trainer"),
    ("aws", "endpoint", {"model": "Faces!"}, "--model"),
    ("rayservice", "endpoint", {"workers": "1:3"}, "one number on Ray Serve"),
]


@pytest.mark.parametrize(
    ("overlay", "component", "options", "expected"), MISTAKES, ids=[row[-1] for row in MISTAKES]
)
def test_a_mistake_is_found_before_anything_is_sent(
    overlay: str, component: Component, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        edit(overlay, component, **options)
    assert expected in str(caught.value)


def test_settings_that_are_no_mapping() -> None:
    with pytest.raises(ConfigError, match="run must be a group"):
        edit("aws", "trainer", settings=["run=3"])

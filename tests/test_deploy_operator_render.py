"""What `aalnet deploy render` makes of the manifests: as asked, and by every rule they keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aalnet.errors import ConfigError, UserError
from aalnet.settings import parse_settings
from deploy.operator import render
from deploy.operator.edits import blanks, edit_manifests
from deploy.operator.errors import ManifestError
from deploy.operator.objects import COMPONENTS, Component, Object
from deploy.operator.options import DeployOptions
from deploy.operator.pods import problems
from deploy.operator.status import ControllerState as State
from deploy.operator.status import controller_state
from tests.support import kuberay_rules, kubernetes_references
from tests.support.kube_deploy import good
from tests.support.kubernetes_objects import OVERLAYS, cluster_spec, select
from tests.support.kubernetes_objects import render as whole
from tests.test_deploy_manifests import CUSTOM, NEWEST, OLDEST, RULES

IMAGE = "registry.example:5000/team/aalnet:0.1.0-cuda"
FILLED: dict[str, Any] = {"image": IMAGE, "storage": "s3://bucket/prefix"}


def edit(overlay: str, component: Component, **options: Any) -> list[Object]:
    objects = whole(f"overlays/{overlay}/{component}")
    return edit_manifests(objects, component, DeployOptions(**options))


def run_settings(objects: list[Object]) -> dict[str, Any]:
    (text,) = (o["data"]["run.yaml"] for o in objects if "run.yaml" in o.get("data", {}))
    result: dict[str, Any] = yaml.safe_load(text)
    return result


def group_of(objects: list[Object]) -> Object:
    (job,) = (o for o in objects if o["kind"] == "RayJob")
    group: Object = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


# Every overlay and component, changed in every way, keeps every rule


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_what_is_rendered_keeps_the_rules(overlay: str, component: Component) -> None:
    options = FILLED | {"name": "faces", "workers": "3", "settings": ["objective.eta=0.4"]}
    if component == "campaign":
        options["settings"] = ["budget.trials=3"]
    if component == "endpoint":
        options |= {"settings": ["batch_samples=16"], "model": "faces"}
    objects = edit(overlay, component, **options)
    assert blanks(objects) == []
    around = [o for o in whole(f"overlays/{overlay}/around") if o["kind"] != "PodMonitor"]
    fitting = [o for o in around if o["kind"] != "NetworkPolicy"]  # they select the others too
    for rule in RULES:
        assert list(rule([*objects, *fitting])) == [], rule.__name__
    for item in objects:
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "faces"
        assert labels["app.kubernetes.io/managed-by"] == "aalnet"
        assert item["metadata"]["name"].startswith("faces")
        if item["apiVersion"].startswith(CUSTOM):
            assert kuberay_rules.crd_errors(item) == []
        else:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_unasked_is_unchanged(overlay: str, component: Component) -> None:
    before, after = whole(f"overlays/{overlay}/{component}"), edit(overlay, component)
    for old, new in zip(before, after, strict=True):
        old["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "aalnet"
        if "-environment-" in old["metadata"]["name"]:
            old["metadata"]["name"] = new["metadata"]["name"]  # a hash of our own
            assert old == new
        elif old["kind"] != "Deployment":
            assert old == new


def test_two_endpoints_do_not_share_pods() -> None:
    objects = [*edit("aws", "endpoint", name="faces"), *edit("aws", "endpoint", name="houses")]
    problems = [
        line for line in kubernetes_references.selectors(objects)
        if "Deployment" in line or "Service" in line
    ]  # fmt: skip
    assert problems == []


# Names, images, storage, settings, workers


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


# Overlays


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    base = Path(render.OVERLAYS / "local" / "trainer")
    mine = tmp_path / "mine"
    mine.mkdir()
    relative = os.path.relpath(base, mine)
    (mine / "kustomization.yaml").write_text(f"resources: [{relative}]\nnamePrefix: my-\n")
    assert select(render.render(str(mine), "trainer"), "RayJob")["metadata"]["name"].startswith(
        "my-"
    )
    with pytest.raises(ManifestError, match="not a campaign"):
        render.render(str(mine), "campaign")
    (mine / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    with pytest.raises(ManifestError, match=r"does not render.*gone\.yaml"):
        render.render(str(mine), "trainer")
    with pytest.raises(ManifestError, match="neither one of aws"):
        render.render("nowhere", "trainer")
    (mine / "kustomization.yaml").write_text(f"resources: [{relative}, secret.yaml]\n")
    (mine / "secret.yaml").write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n")
    with pytest.raises(ManifestError, match="Secret/s of overlay"):
        render.render(str(mine), "trainer")


def test_render_needs_no_cluster(kube: Any) -> None:
    """Nor asks the one that there is, which kubectl does for its version."""
    words = ("render", "trainer", "--overlay", "aws", "--set", "objective.eta=0.4")
    result = good(*words)
    assert {item["kind"] for item in yaml.safe_load_all(result.stdout)} == {"ConfigMap", "RayJob"}
    assert "warning: fill in" in result.stderr
    assert "  run.yaml: |" in result.stdout
    assert json.loads(good(*words, "--json").stdout)["kind"] == "List"
    assert kube.requests == []


def test_needs_neither_torch_nor_ray_nor_boto3() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'ray', 'boto3', 'botocore', 'pyarrow', 'optuna'):\n"
        "    sys.modules[name] = None\n"
        "from aalnet.__main__ import main\n"
        "sys.argv = ['aalnet', 'deploy', *sys.argv[1:]]\n"
        "main()\n"
    )
    for component, setting in (("campaign", "budget.trials=3"), ("endpoint", "batch_samples=8")):
        words = ["render", component, "--overlay", "local", "--set", setting]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "kind: ConfigMap" in done.stdout


# States and pods, from what controllers write


def deployment(**status: Any) -> Object:
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2},
            "status": {"observedGeneration": 2, **status}}  # fmt: skip


FULL = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
QUOTA = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: aalnet"}


def job(deployment: str = "", ran: str = "", **more: str) -> Object:
    status = {"jobDeploymentStatus": deployment, "jobStatus": ran, **more}
    return {"kind": "RayJob", "metadata": {}, "status": {k: v for k, v in status.items() if v}}


def service(*conditions: tuple[str, str], observed: int = 1) -> Object:
    result = [{"type": kind, "status": status, "reason": kind} for kind, status in conditions]
    return {"kind": "RayService", "metadata": {"generation": 1},
            "status": {"observedGeneration": observed, "conditions": result}}  # fmt: skip


@pytest.mark.parametrize(
    ("item", "state"),
    [
        (job(), State("New", "going")),
        (job("Initializing"), State("Initializing", "going")),
        (job("Running", "RUNNING"), State("Running RUNNING", "going")),
        (job("Retrying", "FAILED", reason="AppFailed", message="exit 1"),
         State("Retrying FAILED", "going", "AppFailed: exit 1")),
        (job("Complete", "SUCCEEDED"), State("Complete SUCCEEDED", "done")),
        (job("Complete", "STOPPED"), State("Complete STOPPED", "failed")),
        (job("Failed", "FAILED", reason="DeadlineExceeded"),
         State("Failed FAILED", "failed", "DeadlineExceeded")),
        (job("ValidationFailed", message="name too long"),
         State("ValidationFailed", "failed", "name too long")),
        (deployment(**FULL), State("2/2 ready", "done")),
        (deployment(**FULL | {"observedGeneration": 1}), State("New", "going")),
        (deployment(**FULL | {"availableReplicas": 1}), State("1/2 ready, 2 new", "going")),
        (deployment(**FULL | {"replicas": 3}), State("2/2 ready, 2 new", "going")),
        (deployment(conditions=[QUOTA]), State("0/2 ready, 0 new", "going", QUOTA["message"])),
        (deployment(conditions=[LATE, QUOTA]), State("0/2 ready", "failed", QUOTA["message"])),
        (service(("Ready", "True")), State("Ready", "done")),
        (service(("Ready", "True"), ("UpgradeInProgress", "True")), State("Upgrading", "going")),
        (service(("Ready", "True"), observed=0), State("New", "going")),
        (service(("Ready", "False")), State("Ready", "going")),
        (service(), State("New", "going")),
    ],
)  # fmt: skip
def test_states(item: Object, state: State) -> None:
    assert controller_state(item) == state


def test_pods_that_were_out_of_memory_or_evicted() -> None:
    killed = {"name": "main", "state": {"running": {}},
              "lastState": {"terminated": {"reason": "OOMKilled"}}}  # fmt: skip
    pods = [
        {"metadata": {"name": "a"}, "status": {"containerStatuses": [killed]}},
        {"metadata": {"name": "b"}, "status": {"phase": "Failed", "reason": "Evicted",
                                               "message": "low on memory"}},
        {"metadata": {"name": "c", "deletionTimestamp": "x"}, "status": {"phase": "Failed",
                                                                         "reason": "Evicted"}},
    ]  # fmt: skip
    assert problems(pods, []) == [
        "a: main was out of memory and began again", "b: Evicted: low on memory",
    ]  # fmt: skip


def test_settings_that_are_no_mapping() -> None:
    with pytest.raises(ConfigError, match="run must be a group"):
        edit("aws", "trainer", settings=["run=3"])

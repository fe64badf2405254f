"""What `aalnet deploy render` gives keeps every rule of the manifests, and needs no cluster."""

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

from deploy.operator import render
from deploy.operator.edits import blanks
from deploy.operator.errors import ManifestError
from deploy.operator.objects import COMPONENTS, Component
from tests.support import kuberay_rules, kubernetes_references
from tests.support.kube_deploy import good
from tests.support.kubernetes_objects import OVERLAYS, select
from tests.support.kubernetes_objects import render as whole
from tests.support.overlay_edits import FILLED, edit
from tests.test_deploy_manifests import CUSTOM, NEWEST, OLDEST, RULES

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

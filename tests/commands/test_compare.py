"""`aalnet compare` on tiny runs: what it writes, what it keeps, whom it names, what it refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from cluster.runs import figures
from tests.support.command_line import Aalnet, assert_refused
from tests.support.tiny_runs import tiny_values, write_config

QUICK = ("--workers", "0", "--temperatures", "1")
IMAGES = 8  # of a run: two steps
STORAGE = Path("aalnet-runs")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A feature network that costs nothing: colours of a coarse picture."""
    path = tmp_path_factory.mktemp("features") / "coarse.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        coarse = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
        torch.jit.save(torch.jit.script(coarse), str(path))
    return str(path)


@pytest.fixture(autouse=True)
def two_steps_say_little_of_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SILENT_BELOW", 0.0)


@pytest.fixture
def config(data: Path, here: Path, features: str) -> Path:
    quick = {
        "run.images": IMAGES,
        "run.checkpoint_every_images": IMAGES,
        "evaluation.features": features,
    }
    return write_config(here / "demo.yaml", tiny_values(data, quick))


def result(name: str = "demo") -> dict[str, dict]:
    return json.loads((STORAGE / "comparisons" / name / "comparison.json").read_text())


def starts() -> dict[str, int]:
    """How often each run was started."""
    return {
        path.parent.name: path.read_text().count('"kind": "start"')
        for path in STORAGE.glob("runs/*/metrics.jsonl")
    }


def test_equal_images_over_seeds(type_: Aalnet, config: Path) -> None:
    done = type_(
        "compare", config, "--models", "aalnet,vae", "--seeds", "0,1", "--workers", "0",
        "--temperatures", "0.5,2", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed == result()
    assert [model["name"] for model in printed["models"]] == ["aalnet", "vae"]
    for model in printed["models"]:
        assert model["images"] == IMAGES
        assert model["figures"]["energy_score"]["standard_error"] > 0
        for run in model["outcomes"]:
            assert run["failure"] is None
            assert len(run["temperatures"]) == 2
            assert set(run["temperatures"]) <= {0.5, 2.0}
            assert run["seconds"] > 0
    names = {f"demo-{model}-{seed}" for model in ("aalnet", "vae") for seed in (0, 1)}
    assert starts() == dict.fromkeys(names, 1)
    folder = STORAGE / "comparisons" / "demo"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "| energy_score ↓ |" in (folder / "comparison.md").read_text()

    again = type_("compare", config, "--models", "aalnet,vae", "--seeds", "0,1", "--workers", "0",
                  "--temperatures", "0.5,2")  # fmt: skip
    assert again.code == 0, again.err
    assert set(starts().values()) == {1}
    assert "vae - aalnet" in again.out
    assert result() == printed


def test_equal_seconds_are_planned_once(type_: Aalnet, config: Path) -> None:
    command = ("compare", config, "--models", "vae", "--equal", "seconds", "--seconds", "0.2")
    assert type_(*command, *QUICK).code == 0
    first = result()["models"][0]
    assert first["images"] % 4 == 0
    assert 0 < first["planned_seconds"] <= 0.2
    done = type_(*command, "--seeds", "0,1", *QUICK)
    assert done.code == 0, done.err
    assert "timing" not in done.out
    both = result()["models"][0]
    assert [run["images"] for run in both["outcomes"]] == [first["images"]] * 2
    assert starts() == {"demo-vae-0": 1, "demo-vae-1": 1}

    assert_refused(type_(*command[:-1], "0.4", *QUICK), "planned for 0.2 seconds", "--run")

    (STORAGE / "comparisons" / "demo" / "plan.json").write_text("[")
    done = type_(*command, *QUICK)
    assert done.code == 0, done.err
    assert "plan.json is damaged" in done.err
    assert result()["models"][0]["images"] == first["images"]
    assert starts() == {"demo-vae-0": 1, "demo-vae-1": 1}


def test_a_run_that_fails_is_named_and_the_others_go_on(
    type_: Aalnet, config: Path, data: Path, here: Path
) -> None:
    write_config(here / "wild.yaml", tiny_values(data, {"model": "gan", "optimizer.lr": 1e30}))
    done = type_("compare", config, "--models", "gan=wild.yaml,vae", *QUICK)
    assert done.code == 1, done.err
    (line,) = set(filter(lambda line: line.startswith("gan"), done.err.splitlines()))
    assert line.startswith("gan, seed 0: ")
    assert "not finite" in line
    wild, vae = result()["models"]
    assert wild["file"] == "wild.yaml"
    assert not any(wild["figures"].values())
    assert vae["figures"]["energy_score"]["mean"] > 0
    assert result()["complaints"] == [line]


def test_a_silent_model_is_named(
    type_: Aalnet, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "SILENT_BELOW", 9.0)  # as if no two samples could be told apart
    done = type_("compare", config, "--models", "vae", *QUICK)
    assert done.code == 1
    assert "vae, seed 0, is silent" in done.err
    assert result()["models"][0]["outcomes"][0]["silent"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "dcgan"], ["`dcgan`", "dcgan=FILE"]),
        (["--models", "vae=none.yaml"], ["none.yaml", "does not exist"]),
        (["--equal", "seconds"], ["--equal seconds and --seconds S belong together"]),
        (["--seconds", "5"], ["belong together"]),
        (["--equal", "seconds", "--seconds", "-1"], ["--seconds must be > 0", "-1"]),
        (["--seeds", "0,one"], ["--seeds", "`0,one`"]),
        (["--seeds", "1,1"], ["--seeds", "each once"]),
        (["--seeds", "-1"], ["--seeds", "0 or more"]),
        (["--temperatures", "0,1"], ["--temperatures", "above 0"]),
        (["--temperatures", "inf"], ["--temperatures", "`inf`"]),
        (["--run", "a/b"], ["run name", "a/b-"]),
        (["--set", "data.test=none.parquet"], ["none.parquet"]),
    ],
)
def test_refusals(type_: Aalnet, config: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(type_("compare", config, *arguments), *words)
    assert not STORAGE.exists()


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(
    type_: Aalnet, config: Path
) -> None:
    assert type_("compare", config, "--models", "vae", *QUICK).code == 0
    changed = ("--set", "optimizer.lr=0.5")
    done = type_("compare", config, "--models", "gan,vae", *changed, *QUICK)
    assert_refused(done, "demo-vae-0", "optimizer.lr", out=None)
    assert starts() == {"demo-vae-0": 1}

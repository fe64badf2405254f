"""A campaign's file: read once, checked once, every searched setting by the runs' own loader."""

from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import ConfigError
from tests.support.tiny_campaigns import campaign_settings, write_campaign
from tuner.settings import SPACE, load_campaign

DATA = Path("data")


def test_the_space_is_the_articles_by_default() -> None:
    settings = campaign_settings(DATA)
    assert list(settings.space) == list(SPACE)
    assert [name.rpartition(".")[2] for name in SPACE] == ["lambda", "eta", "beta", "gamma", "K"]
    assert settings.objectives[0].figure == "energy_score"
    assert settings.objectives[0].direction == "minimise"


def test_what_is_written_is_read_again() -> None:
    settings = campaign_settings(DATA, {"warm_start": "other", "workers": 2})
    again = type(settings).model_validate(settings.to_dict())
    assert again.to_dict() == settings.to_dict()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"space": {"objective.etta": {"low": 0.1, "high": 1}}}, "did you mean `objective.eta`"),
        ({"space": {"optimiser.lr": {"low": 0.1, "high": 1}}}, "did you mean `optimizer`"),
        ({"space": {"objective": {"choices": [1]}}}, "objective"),
        ({"space": {"optimizer.lr": {"low": -1.0, "high": 1.0}}}, "optimizer.lr must be > 0"),
        ({"space": {"objective.eta": {"low": 2, "high": 1}}}, "low must be < high"),
        ({"space": {"objective.eta": {"low": 0, "high": 1, "log": True}}}, "start above 0"),
        ({"space": {"objective.eta": {"min": 0, "max": 1}}}, "must be {low: .., high: .."),
        ({"space": {"objective.eta": {"low": 0, "high": 1, "step": 2}}}, "step"),
        ({"space": {"network.blocks": {"choices": ["resnet", "vgg"]}}}, "value 'vgg'"),
        ({"space": {"run.seed": {"choices": [1, 2]}}}, "cannot be searched"),
        ({"space": {}}, "space"),
        ({"first": [{"objective.lamda": 0.3}]}, "not in the space"),
        ({"objectives": [{"figure": "fid"}]}, "'best_of_k_l1'"),
        ({"objectives": [{"figure": "l1"}, {"figure": "l1"}]}, "stands twice"),
        ({"objectives": [{"figure": "l1"}, {"figure": "ssim"}], "pruning": {"kind": "asha"}},
         "pruning.kind must be none with 2 objectives"),
        ({"sampler.kind": "nsga2"}, "needs several objectives"),
        ({"pruning": {"kind": "asha", "first_rung_images": 32}}, "can stop nothing"),
        ({"budget.trials": 0}, "trials"),
        ({"workers": 9}, "workers"),
        ({"samplers": {}}, "did you mean `sampler`"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_starts(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        campaign_settings(DATA, overrides)
    assert told in str(caught.value)


def test_any_setting_may_be_searched() -> None:
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-3, "log": True},
        "network.blocks": {"choices": ["resnet", "densenet", "inception"]},
        "data.balanced_labels": {"choices": [True, False]},
        "objective.K": {"low": 2, "high": 8},
    }
    settings = campaign_settings(DATA, {"space": space})
    run = settings.run_settings({"network.blocks": "densenet", "objective.K": 5})
    assert (run.network.blocks, run.objective.K) == ("densenet", 5)


def test_a_trial_is_a_run_of_the_budget(tmp_path: Path) -> None:
    path = write_campaign(tmp_path / "c.yaml", tmp_path, {"budget.images": 64})
    settings = load_campaign(path, ["workers=2", "budget.trials=7"])
    run = settings.run_settings({"objective.eta": 0.4}, seed=5)
    assert (run.run.images, run.run.workers, run.run.seed, run.objective.eta) == (64, 2, 5, 0.4)
    assert settings.budget.trials == 7
    assert campaign_settings(tmp_path).run_settings({}).run.workers == 0


def test_rungs_begin_where_evaluations_do() -> None:
    pruning = {"pruning": {"kind": "asha"}}
    assert campaign_settings(DATA, pruning).first_rung_images == 16
    later = {"pruning": {"kind": "asha", "first_rung_images": 24}}
    assert campaign_settings(DATA, later).first_rung_images == 24
    rarer = pruning | {"base.run.evaluate_every_images": 20}
    assert campaign_settings(DATA, rarer).first_rung_images == 20

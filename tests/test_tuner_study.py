"""The study's records: what comes of each trial, when failures end it, what may not change."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from aalnet.errors import CheckpointError, ConfigError
from cluster.storage.folder import FolderStore
from tests.support.tiny_campaigns import (
    IMAGES,
    failed,
    finished,
    open_study,
    runs,
    settings_of,
    states,
)
from tuner.campaign import Campaign
from tuner.study import REASON, Outcome, TooManyFailures


def test_trials_in_flight_go_on_and_finished_ones_are_kept_once(tmp_path: Path) -> None:
    settings = settings_of()
    study = open_study(tmp_path, settings)
    first, second = study.ask(), study.ask()
    assert first is not None
    assert second is not None
    study.tell(first, finished(0.5))
    again = open_study(tmp_path, settings)
    resumed = again.ask()
    assert resumed == second
    assert states(again)[:2] == ["COMPLETE", "RUNNING"]


def test_what_is_told_twice_counts_once(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    study.tell(run, finished(0.5))
    study.tell(run, finished(0.7))
    study.tell(run, failed("late"))
    assert [trial.values for trial in study.study.trials if trial.values] == [[0.5]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_fails_with_its_reason(tmp_path: Path, value: float) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    study.report(run, 16, {"energy_score": value})
    study.tell(run, finished(value))
    trial = study.study.trials[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[REASON] == f"energy_score is {value}"
    assert trial.intermediate_values == {}


def test_a_figure_that_is_never_reported_fails_with_its_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    study.tell(run, Outcome("finished", {"l1": 0.1}))
    assert study.study.trials[0].user_attrs[REASON] == "energy_score is never reported"


def test_a_trial_that_ends_silent_has_failed(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    lively = {"k": 8, "images": IMAGES, "energy_score": 14.0, "feature_diversity": 10.0}
    for figures in (lively, lively | {"feature_diversity": 0.1}):
        run = study.ask()
        assert run is not None
        study.tell(run, Outcome("finished", figures))
    assert states(study)[:2] == ["COMPLETE", "FAIL"]
    failed_one = study.study.trials[1].user_attrs
    assert failed_one[REASON].startswith("samples no longer differ")
    assert failed_one["figures"]["energy_score"] == 14.0  # it is kept, and ranks nowhere


def test_trials_that_fail_one_after_the_other_end_the_campaign(tmp_path: Path) -> None:
    settings = settings_of(budget__trials=9, failures_in_a_row=3)
    study = open_study(tmp_path, settings)
    for _ in range(3):
        run = study.ask()
        assert run is not None
        study.tell(run, failed("no such disk"))
    with pytest.raises(TooManyFailures, match=r"last 3 trials .* failed, .*: no such disk"):
        study.ask()
    with pytest.raises(TooManyFailures):
        open_study(tmp_path, settings).ask()
    assert open_study(tmp_path, settings_of(budget__trials=9, failures_in_a_row=5)).ask()


def test_failures_between_successes_do_not_end_it(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of(budget__trials=7, failures_in_a_row=2))
    for run in runs(study):
        study.tell(run, failed("once") if run.trial % 2 else finished(0.1))
    assert states(study).count("FAIL") == 3
    assert study.over


def test_a_campaign_of_failures_alone_ends_so_however_short(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of(budget__trials=2))
    for _ in range(2):
        run = study.ask()
        assert run is not None
        study.tell(run, failed("broken"))
    with pytest.raises(TooManyFailures, match="the last 2 trials"):
        study.ask()


def test_a_stopped_job_is_given_out_again(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    study.tell(run, Outcome("stopped"))
    assert states(study)[0] == "RUNNING"
    assert open_study(tmp_path, settings_of()).ask() == run


def test_every_trial_has_its_settings_seed_run_and_cost(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    files = {"settings": "s", "checkpoints": ["c"], "grid": "g"}
    done = finished(0.5, l1=0.25)
    study.tell(run, Outcome("finished", done.evaluation, done.cost, files=files))
    attributes = study.study.trials[0].user_attrs
    assert attributes["run"] == "tiny-0000"
    assert attributes["seed"] == 0
    assert attributes["files"] == files
    assert attributes["figures"] == {"energy_score": 0.5, "l1": 0.25}
    assert attributes["cost"] == {"seconds": 1.0, "images": IMAGES, "gpu_seconds": 0.0}


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    objectives = [{"figure": "energy_score"}, {"figure": "diversity", "direction": "maximise"}]
    settings = settings_of(objectives=objectives, budget__trials=3)
    study = open_study(tmp_path, settings)
    for run, pair in zip(runs(study), [(0.1, 0.2), (0.2, 0.4), (0.3, 0.1)], strict=True):
        assert study.report(run, 16, {"energy_score": 9.0, "diversity": 0.0}) == "go on"
        study.tell(run, finished(pair[0], diversity=pair[1]))
    assert [trial.number for trial in study.study.best_trials] == [0, 1]


# What may not change


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"space": {"objective.eta": {"low": 0.1, "high": 1.0}}}, "space.objective.K"),
        ({"objectives": [{"figure": "l1"}]}, "objectives"),
        ({"budget__images": 64}, "budget.images 32, now it is 64"),
        ({"base__optimizer": {"lr": 0.002}}, "base.optimizer.lr"),
        ({"base__evaluation": {"samples": 3}}, "base.evaluation.max_images"),
        ({"sampler__seed": 7}, "sampler"),
    ],
)
def test_what_makes_trials_comparable_may_not_change(
    tmp_path: Path, overrides: dict[str, Any], named: str
) -> None:
    campaign = Campaign(FolderStore(tmp_path), "tiny")
    campaign.claim(settings_of())
    with pytest.raises(CheckpointError, match=named) as caught:
        campaign.claim(settings_of(**overrides))
    assert "choose another name with --name" in str(caught.value)
    campaign.claim(settings_of(budget__trials=50, workers=2, failures_in_a_row=9))


def test_the_study_stays_where_it_is(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    Campaign(store, "tiny").claim(settings_of())
    elsewhere = Campaign(store, "tiny", "postgresql://me:secret@db.invalid/studies")
    with pytest.raises(ConfigError, match="kept in the journal in its storage; leave --study away"):
        elsewhere.claim(settings_of())

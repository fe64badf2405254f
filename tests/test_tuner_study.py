"""The study: what is tried and in which order, what is kept, and that a crash changes nothing."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from aalnet.errors import CheckpointError, ConfigError
from cluster.storage.folder import FolderStore
from tests.support.tiny_campaigns import (
    IMAGES,
    campaign_settings,
    failed,
    figure_of,
    finished,
    open_study,
    runs,
)
from tuner.campaign import Campaign
from tuner.search import sampler
from tuner.settings import CampaignSettings
from tuner.status import by_mean
from tuner.study import REASON, STOPPED_AT, CampaignStudy, Outcome, TooManyFailures, TrialRun

DATA = Path("data")  # nothing is read of it


def settings_of(**overrides: Any) -> CampaignSettings:
    return campaign_settings(DATA, {key.replace("__", "."): v for key, v in overrides.items()})


def states(study: CampaignStudy) -> list[str]:
    return [trial.state.name for trial in study.study.get_trials(deepcopy=False)]


def params(study: CampaignStudy) -> list[dict[str, Any]]:
    return [trial.params for trial in study.study.get_trials(deepcopy=False)]


def run_all(study: CampaignStudy) -> None:
    for run in runs(study):
        study.tell(run, finished(figure_of(run)))


# What is tried


def test_the_known_good_settings_come_first_then_as_many_as_asked_for(tmp_path: Path) -> None:
    settings = settings_of(budget__trials=5)
    study = open_study(tmp_path, settings)
    run_all(study)
    assert params(study)[0] == settings.defaults()
    assert states(study) == ["COMPLETE"] * 5
    assert study.over


def test_settings_named_first_are_tried_in_their_order(tmp_path: Path) -> None:
    first = [{"objective.eta": 0.5, "objective.K": 8}, {"objective.lambda": 1.0}]
    study = open_study(tmp_path, settings_of(first=first))
    run_all(study)
    assert params(study)[0]["objective.eta"] == 0.5
    assert params(study)[0]["objective.K"] == 8
    assert params(study)[1]["objective.lambda"] == 1.0


def test_a_base_outside_the_space_leaves_the_rest_to_the_sampler(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of(base__objective={"K": 3, "eta": 0.07}))
    run_all(study)
    assert params(study)[0]["objective.eta"] == 0.07
    assert params(study)[0]["objective.K"] in {2, 4, 8}


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_suggests_the_same(tmp_path: Path, kind: str) -> None:
    settings = settings_of(budget__trials=10, sampler__kind=kind)
    other = settings_of(budget__trials=10, sampler__kind=kind, sampler__seed=1)
    studies = [open_study(tmp_path / name, each) for name, each in
               (("a", settings), ("b", settings), ("c", other))]  # fmt: skip
    for study in studies:
        run_all(study)
    assert params(studies[0]) == params(studies[1])
    assert params(studies[0])[1:] != params(studies[2])[1:]


@pytest.mark.parametrize("after", [1, 3, 7])
def test_suggestions_are_the_same_across_a_crash(tmp_path: Path, after: int) -> None:
    settings = settings_of(budget__trials=10)
    whole = open_study(tmp_path / "whole", settings)
    run_all(whole)
    study = open_study(tmp_path / "killed", settings)
    for run in runs(study):
        if run.trial == after:
            break  # it is under way when the process dies
        study.tell(run, finished(figure_of(run)))
    again = open_study(tmp_path / "killed", settings)
    run_all(again)
    assert params(again) == params(whole)
    assert states(again) == ["COMPLETE"] * 10


def test_no_two_suggestions_are_alike(tmp_path: Path) -> None:
    settings = settings_of(budget__trials=12)
    for _ in range(6):  # a new process for every two
        study = open_study(tmp_path, settings)
        for _ in range(2):
            run = study.ask()
            assert run is not None
            study.tell(run, finished(figure_of(run)))
    distinct = {tuple(sorted(each.items())) for each in params(study)}
    assert len(distinct) == 12


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_trial_left_in_the_middle_of_its_suggestion_is_completed_alike(
    tmp_path: Path, kept: int
) -> None:
    # As a database keeps it, parameter by parameter, where the process dies between two of them.
    settings = settings_of(budget__trials=6)
    whole = open_study(tmp_path / "whole", settings)
    run_all(whole)
    study = open_study(tmp_path / "half", settings)
    for run in runs(study):
        study.tell(run, finished(figure_of(run)))
        if run.trial == 3:
            break
    half = study.study.ask()
    study.study.sampler = sampler(settings, half.number, study._space)
    for name, each in list(study._space.items())[:kept]:
        half._suggest(name, each)
    again = open_study(tmp_path / "half", settings)
    run_all(again)
    assert params(again) == params(whole)


def test_a_warm_start_tries_the_best_of_an_earlier_campaign(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    settings = settings_of(budget__trials=8)
    Campaign(store, "earlier").claim(settings)
    earlier = open_study(store, settings, "earlier")
    run_all(earlier)
    best = min(earlier.study.get_trials(), key=lambda trial: trial.values[0])
    study = open_study(store, settings_of(warm_start="earlier"), "later")
    run_all(study)
    assert best.params in params(study)[:4]


def test_a_warm_start_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="campaign `earlier` does not exist"):
        open_study(tmp_path, settings_of(warm_start="earlier"))


def test_no_trial_starts_after_the_wall_time(tmp_path: Path) -> None:
    settings = settings_of(budget__seconds=100.0)
    study = open_study(tmp_path, settings)
    run = study.ask()
    assert run is not None
    study._started_s -= 200
    assert study.ask() is None
    assert not study.over
    study.tell(run, finished(1.0))
    assert study.over
    assert open_study(tmp_path, settings).ask() is None  # over all starts together


def test_more_trials_are_asked_for_later(tmp_path: Path) -> None:
    run_all(open_study(tmp_path, settings_of(budget__trials=3)))
    study = open_study(tmp_path, settings_of(budget__trials=5))
    run_all(study)
    assert states(study) == ["COMPLETE"] * 5


# What comes of it


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
    study.report(run, 16, {"kid_lite0": value})
    study.tell(run, finished(value))
    trial = study.study.trials[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[REASON] == f"kid_lite0 is {value}"
    assert trial.intermediate_values == {}


def test_a_figure_that_is_never_reported_fails_with_its_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path, settings_of())
    run = study.ask()
    assert run is not None
    study.tell(run, Outcome("finished", {"l1": 0.1}))
    assert study.study.trials[0].user_attrs[REASON] == "kid_lite0 is never reported"


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
    assert attributes["figures"] == {"kid_lite0": 0.5, "l1": 0.25}
    assert attributes["cost"] == {"seconds": 1.0, "images": IMAGES, "gpu_seconds": 0.0}


# Early stopping


def asha(**more: Any) -> CampaignSettings:
    return settings_of(budget__trials=8, pruning={"kind": "asha", **more})


def start(study: CampaignStudy) -> TrialRun:
    run = study.ask()
    assert run is not None
    return run


def test_asha_stops_what_is_worse_than_half_of_its_rung(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    verdicts = []
    for value in (0.5, 0.6, 0.4, 0.45, 0.3):
        run = start(study)
        verdicts.append(study.report(run, 16, {"kid_lite0": value}))
        done = verdicts[-1] == "prune"
        study.tell(run, Outcome("pruned", {"kid_lite0": value}) if done else finished(value))
    # 0.6 is not the best of two; 0.45 is among the best two of four; 0.3 is the best.
    assert verdicts == ["go on", "prune", "go on", "go on", "go on"]
    assert states(study)[:5] == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.study.trials[1].intermediate_values == {16: 0.6}


def test_rungs_are_there_again_after_a_crash(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    for value in (0.5, 0.4):
        run = start(study)
        study.report(run, 16, {"kid_lite0": value})
        study.tell(run, finished(value))
    again = open_study(tmp_path, asha())
    assert again.report(start(again), 16, {"kid_lite0": 0.6}) == "prune"


def test_a_verdict_outlives_the_process_that_gave_it(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    run = start(study)
    study.report(run, 16, {"kid_lite0": 0.5})
    worse = start(study)
    assert study.report(worse, 16, {"kid_lite0": 0.9}) == "prune"
    again = open_study(tmp_path, asha())
    assert [start(again).trial, start(again).trial] == [0, 1]
    assert again.report(worse, 16, {"kid_lite0": 0.9}) == "prune"
    assert again.study.trials[1].user_attrs[STOPPED_AT] == 16
    assert again.report(run, 16, {"kid_lite0": 0.5}) == "go on"


def test_nothing_is_stopped_at_its_own_end(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    for value in (0.1, 0.05):
        run = start(study)
        assert study.report(run, 16, {"kid_lite0": value}) == "go on"
        assert study.report(run, IMAGES, {"kid_lite0": value + 1}) == "go on"
        study.tell(run, finished(value + 1))


def test_median_stops_what_is_worse_than_the_median(tmp_path: Path) -> None:
    rules = {"kind": "median", "startup_trials": 3}
    study = open_study(tmp_path, settings_of(budget__trials=8, pruning=rules))
    for value in (0.3, 0.4, 0.5):
        run = start(study)
        assert study.report(run, 16, {"kid_lite0": value}) == "go on"
        study.tell(run, finished(value))
    assert study.report(start(study), 16, {"kid_lite0": 0.45}) == "prune"
    assert study.report(start(study), 16, {"kid_lite0": 0.35}) == "go on"


def test_maximising_stops_what_is_lower(tmp_path: Path) -> None:
    objectives = [{"figure": "diversity", "direction": "maximise"}]
    rules = settings_of(objectives=objectives, pruning={"kind": "asha"})
    study = open_study(tmp_path, rules)
    assert study.report(start(study), 16, {"diversity": 0.5}) == "go on"
    assert study.report(start(study), 16, {"diversity": 0.4}) == "prune"
    assert study.report(start(study), 16, {"diversity": 0.6}) == "go on"


# Repeats, several objectives


def test_the_best_are_repeated_with_other_seeds_and_ranked_by_mean(tmp_path: Path) -> None:
    settings = settings_of(repeats={"top": 2, "seeds": [0, 1, 2]})  # 0 is the base's own
    study = open_study(tmp_path, settings)
    values = [0.4, 0.1, 0.2, 0.3]
    repeats = []
    for run in runs(study):
        if run.repeat_seed is None:
            study.tell(run, finished(values[run.trial]))
        else:
            repeats.append((run.trial, run.repeat_seed, run.run))
            assert run.settings["run"]["seed"] == run.repeat_seed
            study.tell(run, finished(0.9 if run.trial == 1 else 0.15))
    names = [f"tiny-000{trial}-seed-{seed}" for trial, seed, _ in repeats]
    assert repeats == [(1, 1, names[0]), (1, 2, names[1]), (2, 1, names[2]), (2, 2, names[3])]
    assert study.over
    best = by_mean(study.status().rows, settings)
    assert [row.number for row in best][:2] == [2, 1]
    assert best[0].mean == pytest.approx((0.2 + 0.15 + 0.15) / 3)


def test_repeats_are_made_once_across_crashes(tmp_path: Path) -> None:
    settings = settings_of(budget__trials=2, repeats={"top": 1, "seeds": [1, 2]})
    made = []
    for _ in range(6):
        study = open_study(tmp_path, settings)
        run = study.ask()
        if run is None:
            break
        made.append(run.run)
        study.tell(run, finished(figure_of(run)))
        study.ask()  # and dies with another under way
    assert len(made) == len(set(made)) == 4


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    objectives = [{"figure": "kid_lite0"}, {"figure": "diversity", "direction": "maximise"}]
    settings = settings_of(objectives=objectives, budget__trials=3)
    study = open_study(tmp_path, settings)
    for run, pair in zip(runs(study), [(0.1, 0.2), (0.2, 0.4), (0.3, 0.1)], strict=True):
        assert study.report(run, 16, {"kid_lite0": 9.0, "diversity": 0.0}) == "go on"
        study.tell(run, finished(pair[0], diversity=pair[1]))
    assert [trial.number for trial in study.study.best_trials] == [0, 1]


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_several_objectives_repeat_with_a_seed(tmp_path: Path, kind: str) -> None:
    objectives = [{"figure": "kid_lite0"}, {"figure": "l1"}]
    settings = settings_of(objectives=objectives, sampler__kind=kind, budget__trials=6)
    studies = [open_study(tmp_path / name, settings) for name in "ab"]
    for study in studies:
        for run in runs(study):
            study.tell(run, finished(figure_of(run), l1=run.settings["objective"]["beta"]))
    assert params(studies[0]) == params(studies[1])


# What may not change


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"space": {"objective.eta": {"low": 0.1, "high": 1.0}}}, "space.objective.K"),
        ({"objectives": [{"figure": "l1"}]}, "objectives"),
        ({"budget__images": 64}, "budget.images 32, now it is 64"),
        ({"base__optimizer": {"lr": 0.001}}, "base.optimizer.lr"),
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

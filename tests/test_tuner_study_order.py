"""What a campaign tries and in which order, repeats included: a crash changes nothing of it."""

from pathlib import Path

import pytest

from aalnet.errors import CheckpointError
from cluster.storage.folder import FolderStore
from tests.support.tiny_campaigns import (
    figure_of,
    finished,
    open_study,
    params,
    run_all,
    runs,
    settings_of,
    states,
)
from tuner.campaign import Campaign
from tuner.search import sampler
from tuner.status import by_mean


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


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_several_objectives_repeat_with_a_seed(tmp_path: Path, kind: str) -> None:
    objectives = [{"figure": "energy_score"}, {"figure": "l1"}]
    settings = settings_of(objectives=objectives, sampler__kind=kind, budget__trials=6)
    studies = [open_study(tmp_path / name, settings) for name in "ab"]
    for study in studies:
        for run in runs(study):
            study.tell(run, finished(figure_of(run), l1=run.settings["objective"]["beta"]))
    assert params(studies[0]) == params(studies[1])


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

"""Early stopping: which trials are stopped at which rung, before and after a crash."""

from pathlib import Path
from typing import Any

from tests.support.tiny_campaigns import IMAGES, finished, open_study, settings_of, states
from tuner.settings import CampaignSettings
from tuner.study import STOPPED_AT, CampaignStudy, Outcome, TrialRun


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
        verdicts.append(study.report(run, 16, {"energy_score": value}))
        done = verdicts[-1] == "prune"
        study.tell(run, Outcome("pruned", {"energy_score": value}) if done else finished(value))
    # 0.6 is not the best of two; 0.45 is among the best two of four; 0.3 is the best.
    assert verdicts == ["go on", "prune", "go on", "go on", "go on"]
    assert states(study)[:5] == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.study.trials[1].intermediate_values == {16: 0.6}


def test_rungs_are_there_again_after_a_crash(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    for value in (0.5, 0.4):
        run = start(study)
        study.report(run, 16, {"energy_score": value})
        study.tell(run, finished(value))
    again = open_study(tmp_path, asha())
    assert again.report(start(again), 16, {"energy_score": 0.6}) == "prune"


def test_a_verdict_outlives_the_process_that_gave_it(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    run = start(study)
    study.report(run, 16, {"energy_score": 0.5})
    worse = start(study)
    assert study.report(worse, 16, {"energy_score": 0.9}) == "prune"
    again = open_study(tmp_path, asha())
    assert [start(again).trial, start(again).trial] == [0, 1]
    assert again.report(worse, 16, {"energy_score": 0.9}) == "prune"
    assert again.study.trials[1].user_attrs[STOPPED_AT] == 16
    assert again.report(run, 16, {"energy_score": 0.5}) == "go on"


def test_nothing_is_stopped_at_its_own_end(tmp_path: Path) -> None:
    study = open_study(tmp_path, asha())
    for value in (0.1, 0.05):
        run = start(study)
        assert study.report(run, 16, {"energy_score": value}) == "go on"
        assert study.report(run, IMAGES, {"energy_score": value + 1}) == "go on"
        study.tell(run, finished(value + 1))


def test_median_stops_what_is_worse_than_the_median(tmp_path: Path) -> None:
    rules = {"kind": "median", "startup_trials": 3}
    study = open_study(tmp_path, settings_of(budget__trials=8, pruning=rules))
    for value in (0.3, 0.4, 0.5):
        run = start(study)
        assert study.report(run, 16, {"energy_score": value}) == "go on"
        study.tell(run, finished(value))
    assert study.report(start(study), 16, {"energy_score": 0.45}) == "prune"
    assert study.report(start(study), 16, {"energy_score": 0.35}) == "go on"


def test_maximising_stops_what_is_lower(tmp_path: Path) -> None:
    objectives = [{"figure": "diversity", "direction": "maximise"}]
    rules = settings_of(objectives=objectives, pruning={"kind": "asha"})
    study = open_study(tmp_path, rules)
    assert study.report(start(study), 16, {"diversity": 0.5}) == "go on"
    assert study.report(start(study), 16, {"diversity": 0.4}) == "prune"
    assert study.report(start(study), 16, {"diversity": 0.6}) == "go on"

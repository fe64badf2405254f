"""Small campaigns that the tests of tuner/ share, with and without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.storage.folder import FolderStore
from cluster.storage.store import Store
from tests.support.tiny_runs import tiny_values
from tuner.campaign import Campaign
from tuner.settings import CampaignSettings, parse_campaign
from tuner.study import CampaignStudy, Cost, Outcome, TrialRun

IMAGES = 32  # of a trial; evaluations at 16 and 32
DATA = Path("data")  # for campaigns that train nothing


def campaign_values(data: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A campaign's file as plain data; `overrides` by dotted key."""
    base = tiny_values(data)
    del base["run"]["workers"]
    values: dict[str, Any] = {
        "base": base,
        "budget": {"trials": 4, "images": IMAGES},
        "sampler": {"startup_trials": 2},
        "pruning": {"kind": "none"},
        "repeats": {"top": 0},
    }
    for dotted, value in (overrides or {}).items():
        *parents, key = dotted.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[key] = value
    return values


def campaign_settings(data: Path, overrides: Mapping[str, Any] | None = None) -> CampaignSettings:
    """Settings of a tiny campaign; `overrides` by dotted key."""
    return parse_campaign(campaign_values(data, overrides))


def settings_of(**overrides: Any) -> CampaignSettings:
    """Settings of a tiny campaign that reads no data; `__` in a keyword stands for a dot."""
    return campaign_settings(DATA, {key.replace("__", "."): v for key, v in overrides.items()})


def write_campaign(path: Path, data: Path, overrides: Mapping[str, Any] | None = None) -> Path:
    """Write a tiny campaign's file."""
    path.write_text(yaml.safe_dump(campaign_values(data, overrides)), encoding="utf-8")
    return path


def open_study(
    place: Path | Store, settings: CampaignSettings, name: str = "tiny", url: str | None = None
) -> CampaignStudy:
    """The study of a campaign, as its actor opens it at every start."""
    store = FolderStore(place) if isinstance(place, Path) else place
    return CampaignStudy(Campaign(store, name, url), settings)


def finished(value: float, **figures: float) -> Outcome:
    """A run that ended well, with this energy_score."""
    return Outcome("finished", {"energy_score": value, **figures}, Cost(1.0, IMAGES))


def failed(reason: str) -> Outcome:
    """A run that failed."""
    return Outcome("failed", reason=reason)


def runs(study: CampaignStudy) -> Iterator[TrialRun]:
    """Every run that there is, one after the other: each must be told before the next is asked."""
    while (run := study.ask()) is not None:
        yield run


def figure_of(run: TrialRun) -> float:
    """A made-up figure that depends on the run's settings alone."""
    objective = run.settings["objective"]
    return float(abs(objective["eta"] - 0.2) + objective["lambda"] / 10 + objective["K"] / 100)


def run_all(study: CampaignStudy) -> None:
    """Run every trial to its end, one after the other."""
    for run in runs(study):
        study.tell(run, finished(figure_of(run)))


def params(study: CampaignStudy) -> list[dict[str, Any]]:
    """What each trial has tried."""
    return [trial.params for trial in study.study.get_trials(deepcopy=False)]


def states(study: CampaignStudy) -> list[str]:
    """How each trial stands, by Optuna's name."""
    return [trial.state.name for trial in study.study.get_trials(deepcopy=False)]

"""How a campaign stands at a moment: its trials as rows, its best values, what it has spent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from aalnet.errors import CheckpointError
from tuner.campaign import Campaign, database_errors
from tuner.settings import CampaignSettings

STATES = ("waiting", "running", "complete", "pruned", "fail")  # Optuna's, as they are shown
RepeatResults = dict[tuple[int, int], dict[str, Any]]  # by trial and seed


@dataclass(frozen=True)
class TrialRow:
    """One trial, as tables show it."""

    number: int
    state: str
    run: str
    params: dict[str, Any]
    values: tuple[float, ...]  # of the objectives; of one that runs or was pruned, its last
    images: int
    seconds: float
    reason: str = ""  # of a failure
    repeats: dict[int, float] = field(default_factory=dict)  # the first objective by other seeds

    @property
    def mean(self) -> float | None:
        """The first objective over all seeds; None before there is a value."""
        values = (*self.values[:1], *self.repeats.values())
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class CampaignStatus:
    """A campaign at a moment."""

    campaign: str
    states: dict[str, int]  # number of trials by STATES
    best: dict[str, float]  # by objective
    trials: int  # of the budget
    seconds: float
    budget_s: float | None
    images: int
    gpu_seconds: float
    suggestions: int = 0  # of this start
    suggestion_s: float = 0.0
    repeats_made: int = 0
    repeats_wanted: int = 0
    began_at_s: float | None = None
    progress_at_s: float | None = None  # a trial last began or ended
    rows: tuple[TrialRow, ...] = field(default=(), repr=False)

    @property
    def ended(self) -> int:
        """Trials that are over, however they ended."""
        return sum(self.states[state] for state in ("complete", "pruned", "fail"))

    @property
    def over(self) -> bool:
        """Is nothing left to do?"""
        late = self.budget_s is not None and self.seconds >= self.budget_s
        complete = self.ended >= self.trials and self.repeats_made >= self.repeats_wanted
        return not self.states["running"] and (complete or late)

    @property
    def pruned_share(self) -> float:
        """Pruned trials of those that ended, 0 to 1."""
        return self.states["pruned"] / self.ended if self.ended else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, at the pace so far; None before the first trial has ended."""
        done = self.ended + self.repeats_made
        missing = self.trials - self.ended + self.repeats_wanted - self.repeats_made
        if not done:
            return None
        by_pace_s = self.seconds / done * missing
        if self.budget_s is None:
            return by_pace_s
        return min(by_pace_s, max(self.budget_s - self.seconds, 0.0))


StatusCallback = Callable[[CampaignStatus], None]


def load_status(
    campaign: Campaign, settings: CampaignSettings
) -> tuple[CampaignStatus, optuna.Study]:
    """The status of a campaign by its study, and the study, opened for reading.

    Raises:
        CheckpointError: there is no such study.  StudyUnavailable: its database fails.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with database_errors(campaign.study):
        storage = campaign.open_storage(writes=False)
        try:
            study = optuna.load_study(study_name=campaign.name, storage=storage)
        except KeyError:
            raise CheckpointError(
                f"campaign `{campaign.name}` has no study yet, or it is in a database: give its "
                "URL with --study"
            ) from None
    return current_status(campaign, settings, study), study


def current_status(
    campaign: Campaign, settings: CampaignSettings, study: optuna.Study
) -> CampaignStatus:
    """The status by an open study: a journal's reader reads what is new alone.

    Raises:
        StudyUnavailable: its database fails.
    """
    with database_errors(campaign.study):
        trials = study.get_trials(deepcopy=False)
        return build_status(campaign.name, settings, trials, study.user_attrs)


def build_status(
    name: str,
    settings: CampaignSettings,
    trials: Sequence[FrozenTrial],
    attributes: dict[str, Any],
    **progress: Any,
) -> CampaignStatus:
    """The status by a study's trials and attributes.

    `progress`: fields of the status that only the process that runs the campaign knows.
    """
    counts = Counter(trial.state.name.lower() for trial in trials)
    repeats = repeats_of(attributes)
    rows = tuple(row_of(trial, repeats) for trial in trials)
    costs = [trial.user_attrs.get("cost", {}) for trial in trials]
    costs += [result.get("cost", {}) for result in repeats.values()]
    moments = [m for t in trials for m in (t.datetime_start, t.datetime_complete) if m is not None]
    top = min(settings.repeats.top, counts["complete"])
    fields = {
        "campaign": name,
        "states": {state: counts[state] for state in STATES},
        "best": _best(rows, settings),
        "trials": settings.budget.trials,
        "seconds": attributes.get("seconds", 0.0),
        "budget_s": settings.budget.seconds,
        "images": sum(cost.get("images", 0) for cost in costs),
        "gpu_seconds": sum(cost.get("gpu_seconds", 0.0) for cost in costs),
        "repeats_made": len(repeats),
        "repeats_wanted": top * len(settings.repeat_seeds),
        "began_at_s": attributes.get("began_at_s"),
        "progress_at_s": max(moments).timestamp() if moments else None,
        "rows": rows,
    }
    return CampaignStatus(**fields | progress)


def row_of(trial: FrozenTrial, repeats: RepeatResults) -> TrialRow:
    """One trial with its repeats."""
    cost = trial.user_attrs.get("cost", {})
    values: tuple[float, ...] = tuple(trial.values or ())
    if trial.state != TrialState.COMPLETE and trial.last_step is not None:
        values = (trial.intermediate_values[trial.last_step],)
    began, ended = trial.datetime_start, trial.datetime_complete
    seconds = cost.get("seconds", 0.0)
    if not seconds and began is not None and ended is None:
        seconds = time.time() - began.timestamp()
    others = {
        seed: result["value"] for (number, seed), result in repeats.items()
        if number == trial.number and result.get("value") is not None
    }  # fmt: skip
    return TrialRow(
        trial.number, trial.state.name.lower(), trial.user_attrs.get("run", ""),
        dict(trial.params), values, max(cost.get("images", 0), trial.last_step or 0), seconds,
        trial.user_attrs.get("reason", ""), others,
    )  # fmt: skip


def repeats_of(attributes: dict[str, Any]) -> RepeatResults:
    """The results of the repeats, by trial and seed."""
    results = {}
    for key, value in attributes.items():
        kind, _, rest = key.partition(":")
        number, _, seed = rest.partition(":")
        if kind == "repeat" and number.isdecimal() and seed.isdecimal():
            results[int(number), int(seed)] = value
    return results


def by_mean(rows: Sequence[TrialRow], settings: CampaignSettings) -> list[TrialRow]:
    """Complete trials by the first objective, the best first: those with repeats, by their mean,
    before the others."""
    complete = [row for row in rows if row.state == "complete"]
    objective = settings.objectives[0]
    return sorted(complete, key=lambda row: (not row.repeats, objective.rank(row.mean or 0.0)))


def _best(rows: Sequence[TrialRow], settings: CampaignSettings) -> dict[str, float]:
    best: dict[str, float] = {}
    for i, objective in enumerate(settings.objectives):
        values = [row.values[i] for row in rows if row.state == "complete" and len(row.values) > i]
        if values:
            best[objective.figure] = objective.best(values)
    return best

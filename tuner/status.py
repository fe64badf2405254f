"""What a campaign looks like at a moment: for its table, its commands, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from tuner.settings import CampaignSettings

if TYPE_CHECKING:
    from tuner.study import Study

Repeated = dict[tuple[int, int], dict[str, Any]]  # by trial and seed
STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial, as tables show it."""

    number: int
    state: str
    run: str
    params: dict[str, Any]
    values: tuple[float, ...]  # of the objectives; of one under way or pruned, its last
    images: int
    seconds: float
    reason: str = ""
    repeats: tuple[float, ...] = ()  # the first objective with other seeds

    @property
    def mean(self) -> float | None:
        """The first objective over all seeds."""
        found = (*self.values[:1], *self.repeats)
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class CampaignStatus:
    """A campaign at a moment."""

    campaign: str
    states: dict[str, int]  # trials waiting, running, complete, pruned, fail
    best: dict[str, float]  # by objective
    trials: int  # asked for
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
        return sum(self.states[state] for state in ("complete", "pruned", "fail"))

    @property
    def over(self) -> bool:
        """Is nothing left to do?"""
        late = self.budget_s is not None and self.seconds >= self.budget_s
        made = self.ended >= self.trials and self.repeats_made >= self.repeats_wanted
        return not self.states["running"] and (made or late)

    @property
    def pruned_share(self) -> float:
        return self.states["pruned"] / self.ended if self.ended else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, at the pace so far; None before the first trial has ended."""
        done = self.ended + self.repeats_made
        left = self.trials - self.ended + self.repeats_wanted - self.repeats_made
        if not done:
            return None
        by_pace_s = self.seconds / done * left
        if self.budget_s is None:
            return by_pace_s
        return min(by_pace_s, max(self.budget_s - self.seconds, 0.0))


def status_of(study: Study) -> CampaignStatus:
    """The status by the process that runs the campaign."""
    found = build_status(
        study.campaign.name, study.settings, study.study.get_trials(deepcopy=False),
        study.study.user_attrs, seconds=study.seconds,
    )  # fmt: skip
    return replace(found, suggestions=study.suggested, suggestion_s=study.suggesting_s)


def build_status(
    name: str,
    settings: CampaignSettings,
    trials: Sequence[FrozenTrial],
    attributes: dict[str, Any],
    seconds: float | None = None,
) -> CampaignStatus:
    """The status by the study alone."""
    states = dict.fromkeys(STATES.values(), 0)
    for trial in trials:
        states[STATES[trial.state]] += 1
    repeats = repeats_of(attributes)
    rows = tuple(row_of(trial, repeats) for trial in trials)
    costs = [trial.user_attrs.get("cost", {}) for trial in trials]
    costs += [found.get("cost", {}) for found in repeats.values()]
    moments = [m for t in trials for m in (t.datetime_start, t.datetime_complete) if m is not None]
    wanted = min(settings.repeats.top, states["complete"]) * len(settings.repeat_seeds)
    return CampaignStatus(
        campaign=name,
        states=states,
        best=_best(rows, settings),
        trials=settings.budget.trials,
        seconds=attributes.get("seconds", 0.0) if seconds is None else seconds,
        budget_s=settings.budget.seconds,
        images=sum(cost.get("images", 0) for cost in costs),
        gpu_seconds=sum(cost.get("gpu_seconds", 0.0) for cost in costs),
        repeats_made=len(repeats),
        repeats_wanted=wanted,
        began_at_s=attributes.get("began_at_s"),
        progress_at_s=max(moments).timestamp() if moments else None,
        rows=rows,
    )


def row_of(trial: FrozenTrial, repeats: Repeated) -> TrialRow:
    """One trial with its repeats."""
    cost = trial.user_attrs.get("cost", {})
    reached = trial.last_step or 0
    values: tuple[float, ...] = tuple(trial.values or ())
    if trial.state != TrialState.COMPLETE and trial.last_step is not None:
        values = (trial.intermediate_values[trial.last_step],)
    began, ended = trial.datetime_start, trial.datetime_complete
    spent_s = cost.get("seconds", 0.0)
    if not spent_s and began is not None and ended is None:
        spent_s = time.time() - began.timestamp()
    others = [
        found["value"] for (number, _), found in repeats.items()
        if number == trial.number and found.get("value") is not None
    ]  # fmt: skip
    return TrialRow(
        trial.number, STATES[trial.state], trial.user_attrs.get("run", ""), dict(trial.params),
        values, max(cost.get("images", 0), reached), spent_s,
        trial.user_attrs.get("reason", ""), tuple(others),
    )  # fmt: skip


def repeats_of(attributes: dict[str, Any]) -> Repeated:
    """What came of the repeats, by trial and seed."""
    found = {}
    for key, value in attributes.items():
        kind, _, rest = key.partition(":")
        number, _, seed = rest.partition(":")
        if kind == "repeat" and number.isdecimal() and seed.isdecimal():
            found[int(number), int(seed)] = value
    return found


def by_mean(rows: Sequence[TrialRow], settings: CampaignSettings) -> list[TrialRow]:
    """Complete trials of one objective, the best first: those with repeats by their mean, first."""
    complete = [row for row in rows if row.state == "complete"]
    return sorted(
        complete,
        key=lambda row: (
            not row.repeats,
            settings.objectives[0].rank(row.mean if row.mean is not None else 0),
        ),
    )


def _best(rows: Sequence[TrialRow], settings: CampaignSettings) -> dict[str, float]:
    best: dict[str, float] = {}
    for i, objective in enumerate(settings.objectives):
        values = [row.values[i] for row in rows if row.state == "complete" and len(row.values) > i]
        if values:
            best[objective.figure] = objective.best(values)
    return best

"""What Optuna is asked with: the space, the sampler of each suggestion, the rule of early stopping.

Every function here is of settings and trials alone; the study (tuner/study.py) keeps the state.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study, pruners, samplers
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cluster.runs.figures import kid_name
from tuner.settings import CampaignSettings, Choices, Objective, Range, finite

Space = Mapping[str, BaseDistribution]


def distributions(settings: CampaignSettings) -> dict[str, BaseDistribution]:
    """The space as Optuna has it."""
    return {key: _distribution(dimension) for key, dimension in settings.space.items()}


def _distribution(dimension: Range | Choices) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    low, high = dimension.low, dimension.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log)
    return FloatDistribution(float(low), float(high), log=dimension.log)


def inside(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Values that the space can hold: the rest is left for the sampler."""
    kept = {}
    for key, value in values.items():
        with contextlib.suppress(TypeError, ValueError, KeyError):
            if key in space and space[key]._contains(space[key].to_internal_repr(value)):
                kept[key] = value
    return kept


def direction_of(objective: Objective) -> StudyDirection:
    """Which way Optuna goes."""
    return StudyDirection.MINIMIZE if objective.minimises else StudyDirection.MAXIMIZE


def figure_of(evaluation: Mapping[str, Any], objective: Objective) -> Any:
    """The objective's figure as an evaluation tells it; None where it does not."""
    name = kid_name(evaluation) if objective.figure == "kid" else objective.figure
    return evaluation.get(name) if name else None


def value_of(evaluation: Mapping[str, Any], objective: Objective) -> float | None:
    """The objective's figure; None where it is missing or not finite."""
    found = figure_of(evaluation, objective)
    return float(found) if finite(found) else None


def ranked(trials: Sequence[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    """Complete trials, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: objective.rank(trial.values[0]))


def sampler(settings: CampaignSettings, number: int, space: Space) -> samplers.BaseSampler:
    """The sampler of trial `number` alone. Its randomness is of (seed, number): a campaign that
    goes on repeats no suggestion, and one that is begun again repeats every one."""
    text = f"{settings.sampler.seed}/{number}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    kind, startup = settings.sampler.kind, settings.sampler.startup_trials
    if kind == "nsga2":
        return WholeNSGAII(space, seed=seed)
    if kind == "random":
        startup = settings.budget.trials
    return WholeTPE(space, seed=seed, n_startup_trials=startup, multivariate=True)


class Whole(samplers.BaseSampler):
    """Draws all of a suggestion at once, of the space that is known. Optuna would find the space
    out again from all trials, which at 1,000 of them takes longer than the suggestion itself; and
    parameters drawn one by one would come out otherwise after a crash between two of them."""

    space: Space

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self.space.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        found = super().sample_relative(study, trial, search_space)  # type: ignore[safe-super]
        return found or {
            name: self.sample_independent(study, trial, name, each)
            for name, each in search_space.items()
        }


class WholeTPE(Whole, samplers.TPESampler):
    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self.space = space


class WholeNSGAII(Whole, samplers.NSGAIISampler):
    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self.space = space


def pruner(settings: CampaignSettings) -> pruners.BasePruner:
    """Decides by the study's own records, so rungs are there again when a campaign goes on.

    ASHA without a queue: at a rung a trial goes on if it is among the best 1/reduction of those
    that have come there so far; the first to come always does.
    """
    rules, first = settings.pruning, settings.first_rung_images
    if rules.kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=rules.reduction)
    if rules.kind == "median":
        return pruners.MedianPruner(n_startup_trials=rules.startup_trials, n_warmup_steps=first - 1)
    return pruners.NopPruner()

"""A campaign's settings as Optuna takes them: the space, the sampler of each trial, the pruner.

Every function here is of settings and trials alone; the study (tuner/study.py) keeps the state.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cluster.runs.figures import kid_name, silence
from tuner.settings import KERNEL_DISTANCE, CampaignSettings, SearchObjective, finite
from tuner.space import Choices, Range

Space = Mapping[str, BaseDistribution]


def distributions(settings: CampaignSettings) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions, by dotted name."""
    return {key: _distribution(dimension) for key, dimension in settings.space.items()}


def _distribution(dimension: Range | Choices) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    low, high = dimension.low, dimension.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log)
    return FloatDistribution(float(low), float(high), log=dimension.log)


def inside(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Those of the values that the space can hold: the rest is for the sampler."""
    valid = {}
    for key, value in values.items():
        with contextlib.suppress(TypeError, ValueError, KeyError):
            if space[key]._contains(space[key].to_internal_repr(value)):
                valid[key] = value
    return valid


def direction_of(objective: SearchObjective) -> StudyDirection:
    """The objective's direction as Optuna names it."""
    return StudyDirection.MINIMIZE if objective.minimises else StudyDirection.MAXIMIZE


def figure_of(evaluation: Mapping[str, Any], objective: SearchObjective) -> Any:
    """The objective's figure of an evaluation; None where it has none."""
    name = kid_name(evaluation) if objective.figure == KERNEL_DISTANCE else objective.figure
    return evaluation.get(name) if name else None


def value_of(evaluation: Mapping[str, Any], objective: SearchObjective) -> float | None:
    """The objective's figure; None where it is missing or not finite."""
    figure = figure_of(evaluation, objective)
    return float(figure) if finite(figure) else None


def failure_of(evaluation: Mapping[str, Any], settings: CampaignSettings) -> str:
    """Why a trial that finished with this evaluation has failed; empty where it has not."""
    for objective in settings.objectives:
        if value_of(evaluation, objective) is None:
            figure = figure_of(evaluation, objective)
            return f"{objective.figure} is {'never reported' if figure is None else figure}"
    return silence(evaluation, evaluation.get("images", 0), settings.budget.images) or ""


def ranked(trials: Sequence[FrozenTrial], objective: SearchObjective) -> list[FrozenTrial]:
    """Complete trials, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: objective.rank(trial.values[0]))


def sampler(settings: CampaignSettings, number: int, space: Space) -> samplers.BaseSampler:
    """The sampler of trial `number` alone. Its randomness is of (seed, number): a campaign that
    goes on repeats no suggestion, and one that is begun again repeats every one."""
    text = f"{settings.sampler.seed}/{number}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    kind, startup = settings.sampler.kind, settings.sampler.startup_trials
    chosen: JointNSGAIISampler | JointTPESampler
    if kind == "nsga2":
        chosen = JointNSGAIISampler(seed=seed)
    else:
        startup = settings.budget.trials if kind == "random" else startup
        chosen = JointTPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    chosen.space = space
    return chosen


class JointSampler(samplers.BaseSampler):
    """Suggests all of a trial at once, of the space that is known. Optuna would infer the space
    again from all trials, which at 1,000 of them takes longer than the suggestion itself; and
    parameters suggested one by one would come out otherwise after a crash between two of them."""

    space: Space

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The whole space, without what has one value only."""
        return {name: each for name, each in self.space.items() if not each.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the whole space; at random where the sampler has too few trials to learn of."""
        values = super().sample_relative(study, trial, search_space)  # type: ignore[safe-super]
        return values or {
            name: self.sample_independent(study, trial, name, each)
            for name, each in search_space.items()
        }


class JointTPESampler(JointSampler, samplers.TPESampler):
    """Tree-structured Parzen estimator, all parameters at once."""


class JointNSGAIISampler(JointSampler, samplers.NSGAIISampler):
    """Genetic, for several objectives, all parameters at once."""


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

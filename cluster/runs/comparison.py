"""What a comparison found: each model's runs, means over seeds, differences to the first model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.runs.figures import HIGHER_IS_BETTER, names, silence

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Outcome:
    """One run of a comparison, trained and measured, or why not."""

    model: str
    seed: int
    run: str
    settings_digest: str
    images: int
    seconds: float = 0.0  # of training, its evaluations left out
    temperatures: tuple[float, ...] = ()  # of the even and of the odd held-out pairs
    figures: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None

    @property
    def silent(self) -> bool:
        """Do its samples no longer differ?"""
        return self._silence is not None

    @property
    def _silence(self) -> str | None:
        return silence(self.figures, self.images, self.images)

    @property
    def complaint(self) -> str | None:
        """What is wrong with it, in one line; None where nothing is."""
        if self.failure is not None:
            return f"{self.model}, seed {self.seed}: {self.failure}"
        if (told := self._silence) is not None:
            return f"{self.model}, seed {self.seed}, is silent and counts all the same: {told}"
        return None


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; None where one value leaves none."""

    mean: float
    standard_error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Over seeds."""
        several = len(values) > 1
        error = statistics.stdev(values) / math.sqrt(len(values)) if several else None
        return cls(statistics.fmean(values), error)

    @property
    def clear(self) -> bool:
        """Is it outside two standard errors of 0?"""
        return self.standard_error is not None and abs(self.mean) > CLEAR * self.standard_error


@dataclass(frozen=True)
class Model:
    """One model of a comparison with all its runs."""

    name: str
    kind: str  # `model` in its settings
    file: str | None
    images: int
    planned_seconds: float | None
    outcomes: list[Outcome]

    def values(self, figure: str) -> dict[int, float]:
        """A figure by seed, where it was measured."""
        return {
            outcome.seed: float(outcome.figures[figure])
            for outcome in self.outcomes
            if isinstance(outcome.figures.get(figure), int | float)
        }

    def estimate(self, figure: str) -> Estimate | None:
        """Mean over seeds; of one seed its own standard error, over images."""
        values = self.values(figure)
        if not values:
            return None
        if len(values) > 1:
            return Estimate.of(list(values.values()))
        return self.estimate_of(next(iter(values)), figure)

    def estimate_of(self, seed: int, figure: str) -> Estimate:
        """A figure of one seed, with its standard error over images."""
        figures = next(one.figures for one in self.outcomes if one.seed == seed)
        return Estimate(float(figures[figure]), figures.get(f"{figure}_se"))

    def difference(self, other: Model, figure: str) -> Estimate | None:
        """Less another model's figure, paired by seed.

        Of one seed the standard error is that of two samples of images, wider than paired ones'.
        """
        ours, theirs = self.values(figure), other.values(figure)
        both = [seed for seed in ours if seed in theirs]
        if not both:
            return None
        found = Estimate.of([ours[seed] - theirs[seed] for seed in both])
        if len(both) > 1:
            return found
        errors = [model.estimate_of(both[0], figure).standard_error for model in (self, other)]
        known = [error for error in errors if error is not None]
        return Estimate(found.mean, math.hypot(*known) if len(known) == 2 else None)


@dataclass(frozen=True)
class Comparison:
    """Models on one task; the first is the one that the others are held against."""

    name: str
    equal: str  # images or seconds
    seconds: float | None
    seeds: list[int]
    temperatures: list[float]  # tried
    choice_samples: int  # for their choice
    models: list[Model]

    @property
    def complaints(self) -> list[str]:
        """Of all runs."""
        told = (outcome.complaint for model in self.models for outcome in model.outcomes)
        return [line for line in told if line is not None]

    @property
    def measured(self) -> Mapping[str, Any]:
        """Figures of one run, whichever: for their names and the floors; empty where all failed."""
        runs = (outcome.figures for model in self.models for outcome in model.outcomes)
        return next((figures for figures in runs if figures), {})

    @property
    def figures(self) -> list[str]:
        """Names of what was measured, in order."""
        return names(self.measured)

    @property
    def errors_over(self) -> str:
        """What the standard errors are over."""
        return "seeds" if len(self.seeds) > 1 else "images"

    def best(self, figure: str) -> Model | None:
        """Whose mean is best."""
        means = [(found.mean, model) for model in self.models
                 if (found := model.estimate(figure)) is not None]  # fmt: skip
        choose = max if figure in HIGHER_IS_BETTER else min
        return choose(means, key=lambda pair: pair[0])[1] if means else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        first = self.models[0]
        plain = asdict(self)
        for model, values in zip(self.models, plain["models"], strict=True):
            for outcome, row in zip(model.outcomes, values["outcomes"], strict=True):
                row["silent"] = outcome.silent
            values["figures"] = {
                figure: {
                    **_plain(model.estimate(figure), ("mean", "standard_error")),
                    **_plain(
                        None if model is first else model.difference(first, figure),
                        ("difference", "difference_standard_error"),
                    ),
                }
                for figure in self.figures
            }
        return {**plain, "errors_over": self.errors_over, "complaints": self.complaints}


def _plain(estimate: Estimate | None, keys: tuple[str, str]) -> dict[str, float | None]:
    if estimate is None:
        return {}
    return dict(zip(keys, (estimate.mean, estimate.standard_error), strict=True))

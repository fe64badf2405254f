"""When each part of the objective works: a pure function of the images seen.

    ignition     the first `objective.ignition_images`: samples of the prior beside the proposal's
    proposal     the proposal alone estimates the likelihood
    entropy      from `objective.entropy_from` of the run: samples of the prior again
    adversary    from `objective.adversary_from`: D learns, and G learns from it

So the phases are the same for any number of workers, and exact on resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from aalnet.model_settings import ObjectiveSettings


@dataclass(frozen=True)
class Phase:
    """Which parts work in a step."""

    prior: bool  # K samples of the prior, for likelihood and entropy
    adversary: bool

    @property
    def name(self) -> str:
        """For logs: `proposal`, `prior`, `adversary` or `prior + adversary`."""
        parts = [name for name in ("prior", "adversary") if getattr(self, name)]
        return " + ".join(parts) or "proposal"


@dataclass(frozen=True)
class Span:
    """A stretch of a run in one phase."""

    images_seen: int  # at its start
    share: float  # of the run's images
    phase: Phase


def phase_at(objective: ObjectiveSettings, run_images: int, images_seen: int) -> Phase:
    """The phase of the step that starts at `images_seen` of `run_images`."""
    images_seen = min(images_seen, run_images - 1)  # 1 is never, past the end too
    entropy, adversary = starts(objective, run_images)
    ignites = images_seen < objective.ignition_images
    teaches = bool(objective.lambda_ or objective.beta or objective.gamma)  # G heeds D
    return Phase(
        prior=ignites or images_seen >= entropy,
        adversary=teaches and images_seen >= adversary,
    )


def starts(objective: ObjectiveSettings, run_images: int) -> tuple[float, float]:
    """Images at which entropy and the adversary begin."""
    return objective.entropy_from * run_images, objective.adversary_from * run_images


def spans(objective: ObjectiveSettings, run_images: int) -> list[Span]:
    """A run's stretches of one phase each, in order; their shares add up to 1."""
    inner = {objective.ignition_images, *map(math.ceil, starts(objective, run_images))}
    edges = sorted({0, run_images, *(edge for edge in inner if 0 < edge < run_images)})
    return [
        Span(start, (end - start) / run_images, phase_at(objective, run_images, start))
        for start, end in pairwise(edges)
    ]

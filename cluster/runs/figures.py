"""The figures of an evaluation: their order, which way is better, and what they must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KID = "kid"  # stands for the kernel distance, whose own name tells its features
KID_PREFIX = "kid_unpaired_"  # `kid_lite0` of earlier versions was another, biased figure
ORDER = (
    "energy_score", "pixel_energy_score", KID, "best_of_k_l1", "diversity", "feature_diversity",
    "label_following", "l1", "ssim", "psnr",
)  # fmt: skip
HIGHER_IS_BETTER = frozenset({"diversity", "feature_diversity", "label_following", "ssim", "psnr"})


SILENT_BELOW = 0.1  # of the spread, which is 1 for the true distribution
EARLY_SHARE, EARLY_IMAGES = 0.2, 6000  # of a run: it may still be silent, whichever is less


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation against that of returning the condition."""

    name: str
    value: float
    standard_error: float | None
    floor: float | None
    higher_is_better: bool

    @property
    def better(self) -> bool | None:
        """Whether the figure beats its floor; None where there is no floor."""
        if self.floor is None or not math.isfinite(self.value):
            return None
        return self.value > self.floor if self.higher_is_better else self.value < self.floor


def figures(evaluation: Mapping[str, Any]) -> list[Figure]:
    """The figures of an evaluation in order."""
    return [
        Figure(
            name, evaluation[name], evaluation.get(f"{name}_se"), floor_of(evaluation, name),
            name in HIGHER_IS_BETTER,
        )
        for name in names(evaluation)
    ]  # fmt: skip


def names(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the figures that were measured, in order."""
    ordered = (kid_name(evaluation) if name == KID else name for name in ORDER)
    return [name for name in ordered if name and isinstance(evaluation.get(name), int | float)]


def floor_of(evaluation: Mapping[str, Any], name: str) -> float | None:
    """The figure of returning the condition; None where it was not measured."""
    if name in ("diversity", "feature_diversity", "label_following"):
        return 0.0
    return evaluation.get(f"{name.removeprefix('best_of_k_')}_condition")


def kid_name(evaluation: Mapping[str, Any]) -> str | None:
    """The name of the kernel distance in an evaluation: it depends on the features."""
    kids = (name for name in evaluation if name.startswith(KID_PREFIX))
    return next((name for name in kids if not name.endswith(("_condition", "_se"))), None)


def score_of(evaluation: Mapping[str, Any], name: str) -> float | None:
    """A figure as a score, lower is better; None where it was not measured or is not finite."""
    key = kid_name(evaluation) if name == KID else name
    value = _finite(evaluation, key) if key else None
    return -value if value is not None and name in HIGHER_IS_BETTER else value


def _finite(evaluation: Mapping[str, Any], key: str) -> float | None:
    value = evaluation.get(key)
    try:
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def spread(evaluation: Mapping[str, Any]) -> float | None:
    """Mean distance between samples of a condition over that from samples to the target.

    In features, else in pixels; None with k = 1, or where it was not measured.
    """
    if (_finite(evaluation, "k") or 0) < 2:
        return None
    between, energy = _finite(evaluation, "feature_diversity"), _finite(evaluation, "energy_score")
    if between is None or energy is None:
        between, to_target = _finite(evaluation, "diversity"), _finite(evaluation, "l1")
    else:
        to_target = energy + between / 2
    return between / to_target if between is not None and to_target else None


def silence(evaluation: Mapping[str, Any], at_images: int, total_images: int) -> str | None:
    """What to tell of a run whose samples no longer differ; None of others, and early in a run."""
    share = spread(evaluation)
    early = at_images < min(EARLY_SHARE * total_images, EARLY_IMAGES)
    if share is None or share >= SILENT_BELOW or early:
        return None
    return (
        f"samples no longer differ: their distance from each other is {share:.1%} of that to the "
        f"target at {at_images:,} images; lower optimizer.lr, raise objective.eta (aalnet), or "
        "start again with another run.seed"
    )

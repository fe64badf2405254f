"""The figures of an evaluation: their order, which way is better, and what they must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KID = "kid"  # stands for the kernel distance, whose own name tells its features
KID_PREFIX = "kid_unpaired_"  # `kid_lite0` of releases before was another, biased figure
ORDER = (
    "energy_score", "pixel_energy_score", KID, "best_of_k_l1", "diversity", "feature_diversity",
    "label_following", "l1", "ssim", "psnr",
)  # fmt: skip
HIGHER_IS_BETTER = frozenset({"diversity", "feature_diversity", "label_following", "ssim", "psnr"})


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
    value = evaluation.get(key) if key else None
    try:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
    except OverflowError:  # JSON has integers that no float holds
        return None
    return -value if name in HIGHER_IS_BETTER else float(value)

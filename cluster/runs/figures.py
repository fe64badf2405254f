"""The figures of an evaluation: their order, which way is better, and what they must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIGHER_IS_BETTER = frozenset({"diversity", "ssim", "psnr"})
FIGURE_ORDER = ("l1", "best_of_k_l1", "diversity", "ssim", "psnr")


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation against that of returning the condition."""

    name: str
    value: float
    floor: float | None
    higher_is_better: bool

    @property
    def better(self) -> bool | None:
        """Whether the figure beats its floor; None where there is no floor."""
        if self.floor is None or not math.isfinite(self.value):
            return None
        return self.value > self.floor if self.higher_is_better else self.value < self.floor


def figures(evaluation: Mapping[str, Any]) -> list[Figure]:
    """The figures of an evaluation in order, the kernel distance first."""
    measured = []
    for name in (kid_name(evaluation), *FIGURE_ORDER):
        value = evaluation.get(name) if name else None
        if name and isinstance(value, int | float):
            floor = floor_of(evaluation, name)
            measured.append(Figure(name, value, floor, name in HIGHER_IS_BETTER))
    return measured


def floor_of(evaluation: Mapping[str, Any], name: str) -> float | None:
    """The figure of returning the condition; None where it was not measured."""
    if name == "diversity":
        return 0.0
    return evaluation.get(f"{name.removeprefix('best_of_k_')}_condition")


def kid_name(evaluation: Mapping[str, Any]) -> str | None:
    """The name of the kernel distance in an evaluation: it depends on the features."""
    return next(
        (n for n in evaluation if n.startswith("kid_") and not n.endswith("_condition")), None
    )


def score_of(evaluation: Mapping[str, Any], name: str) -> float | None:
    """A figure as a score, lower is better; None where it was not measured or is not finite.

    `kid` stands for the kernel distance, whatever its features.
    """
    key = kid_name(evaluation) if name == "kid" else name
    value = evaluation.get(key) if key else None
    try:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
    except OverflowError:  # JSON has integers that no float holds
        return None
    return -value if name in HIGHER_IS_BETTER else float(value)

"""Diagonal Gaussians over codes: the prior p(z|x, c) and the proposal q(z|x, c, y).

Shapes: N conditions, K codes of each, Z noise size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """mean and log standard deviation, each [N, Z]."""

    mean: Tensor
    log_std: Tensor

    def codes(self, noise: Tensor) -> Tensor:
        """Standard normal noise [N, K, Z] -> codes of this distribution [N, K, Z]."""
        return self.mean[:, None] + self.log_std.exp()[:, None] * noise

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other), a penalty.  -> [N]"""
        squared = (self.mean - other.mean).square() + (2 * self.log_std).exp()
        relative = squared * (-2 * other.log_std).exp()
        return (0.5 * (relative - 1) + other.log_std - self.log_std).sum(dim=1)

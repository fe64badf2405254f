"""The density p_theta(y given x): K Laplace kernels around the samples, joined by their width.

    log p(y|x) = w * log[ 1/K * sum_k exp(-d(y, mu_k) / (b w)) ]     (article 2.2, per pixel)

`d` is the smooth mean absolute difference, b the `scale`, w the `width`. At w = 1 this is the
article's mixture, in which the nearest sample decides. A wide kernel lets every sample count: in
its limit log p(y|x) = -mean_k d(y, mu_k) / b, and with `entropy` at eta = 1/2 the two are the
energy score, which is proper. Shapes: N conditions, K samples, C channels, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 0.01  # smoothing of |delta|: finite differences need a smooth d (docs/objective.md)


@dataclass(frozen=True)
class Density:
    """p(y|x) by its kernel; the one place that knows how pictures are compared in training."""

    scale: float  # b
    width: float = 1.0  # w

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean over C, H, W of sqrt(delta^2 + eps^2) - eps.  [..., C, H, W] -> [...]"""
        return ((a - b).square() + EPSILON**2).sqrt().mean(dim=(-3, -2, -1)) - EPSILON

    def log(self, points: Tensor, samples: Tensor) -> Tensor:
        """log p of points [N, I, C, H, W] under samples [N, K, C, H, W].  -> [N, I]"""
        return self.log_of(self.distance(points[:, :, None], samples[:, None]))

    def log_of(self, distances: Tensor) -> Tensor:
        """log p of points at `distances` [..., K] from the K samples.  -> [...]"""
        scaled = distances / (-self.scale * self.width)
        return self.width * (torch.logsumexp(scaled, dim=-1) - math.log(distances.shape[-1]))

"""The density p_theta(y given x): a mixture of K Laplace kernels around the samples.

    p(y|x) = 1/K * sum_k exp(-d(y, mu_k) / b)            (article 2.2, per pixel; see docs)

`d` is the smooth mean absolute difference. Everything is computed in logs.
Shapes: N conditions, K samples, C channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 0.01  # smoothing of |delta|: finite differences need a smooth d (docs/objective.md)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """d(a, b) = mean over C, H, W of sqrt(delta^2 + eps^2) - eps.  [..., C, H, W] -> [...]"""
    return ((a - b).square() + EPSILON**2).sqrt().mean(dim=(-3, -2, -1)) - EPSILON


def pairwise_distances(points: Tensor, centres: Tensor) -> Tensor:
    """d(points_i, centres_j).  [N, I, C, H, W], [N, K, C, H, W] -> [N, I, K]"""
    return distance(points[:, :, None], centres[:, None])


def log_density(distances: Tensor, scale: float) -> Tensor:
    """log p of points at `distances` [..., K] from the K samples, b = `scale`.  -> [...]"""
    return torch.logsumexp(-distances / scale, dim=-1) - math.log(distances.shape[-1])

"""The three block families: resnet, densenet, inception, all residual and without normalisation.

Batch normalisation would couple samples across workers; the activation is SiLU because the
gradient penalties need smooth functions (docs/objective.md).

Shapes: every block maps [M, C_in, H, W] -> [M, C_out, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SILU_GAIN = 1.68  # 1 / sqrt(E[silu(x)^2]) for x ~ N(0, 1): keeps the variance through a SiLU
BRANCH_GAIN = 0.1  # a block starts near the identity, which replaces normalisation


def conv(c_in: int, c_out: int, size: int, gain: float = 1.0) -> nn.Conv2d:
    """Same-size convolution with variance-preserving weights times `gain` and zero bias."""
    layer = nn.Conv2d(c_in, c_out, size, padding=size // 2)
    nn.init.normal_(layer.weight, std=gain * (c_in * size * size) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def linear(n_in: int, n_out: int, gain: float = 1.0) -> nn.Linear:
    """Fully connected layer with variance-preserving weights times `gain` and zero bias."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=gain * n_in**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, pre-activation)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.first = conv(c_in, c_out, 3, SILU_GAIN)
        self.last = conv(c_out, c_out, 3, SILU_GAIN * BRANCH_GAIN)

    def forward(self, h: Tensor) -> Tensor:
        """h [N, C_in, H, W] -> [N, C_out, H, W]."""
        branch: Tensor = self.last(F.silu(self.first(F.silu(h))))
        skipped: Tensor = self.shortcut(h)
        return branch + skipped


class DenseNetBlock(nn.Module):
    """Two growing layers, each fed all earlier features, and a 1x1 transition (Huang 2017)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        growth = max(c_out // 2, 1)
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.first = conv(c_in, growth, 3, SILU_GAIN)
        self.second = conv(c_in + growth, growth, 3, SILU_GAIN)
        self.last = conv(c_in + 2 * growth, c_out, 1, SILU_GAIN * BRANCH_GAIN)

    def forward(self, h: Tensor) -> Tensor:
        """h [N, C_in, H, W] -> [N, C_out, H, W]."""
        features = F.silu(h)
        for layer in (self.first, self.second):
            features = torch.cat([features, F.silu(layer(features))], dim=1)
        branch: Tensor = self.last(features)
        skipped: Tensor = self.shortcut(h)
        return branch + skipped


class InceptionBlock(nn.Module):
    """Parallel 1x1, 3x3, 5x5 (as two 3x3) and pooled branches, merged by 1x1 (Szegedy 2017)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        width = max(c_out // 4, 1)
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.point = conv(c_in, width, 1, SILU_GAIN)
        self.near = conv(c_in, 2 * width, 3, SILU_GAIN)
        self.far = nn.Sequential(
            conv(c_in, width, 3, SILU_GAIN), nn.SiLU(), conv(width, width, 3, SILU_GAIN)
        )
        self.pooled = conv(c_in, width, 1, SILU_GAIN)
        self.last = conv(5 * width, c_out, 1, SILU_GAIN * BRANCH_GAIN)

    def forward(self, h: Tensor) -> Tensor:
        """h [N, C_in, H, W] -> [N, C_out, H, W]."""
        a = F.silu(h)
        pooled = F.avg_pool2d(a, 3, stride=1, padding=1, count_include_pad=False)
        branches = [self.point(a), self.near(a), self.far(a), self.pooled(pooled)]
        branch: Tensor = self.last(F.silu(torch.cat(branches, dim=1)))
        skipped: Tensor = self.shortcut(h)
        return branch + skipped


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet": ResNetBlock,
    "densenet": DenseNetBlock,
    "inception": InceptionBlock,
}

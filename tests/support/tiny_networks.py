"""Networks of a few channels, and what goes into them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aalnet.blocks import BLOCKS
from aalnet.networks import DataSpec
from aalnet.settings import Settings, parse_settings

SPEC = DataSpec(labels=("a", "b", "c"), condition_channels=1, target_channels=3)
N, K, Z = 2, 3, 4

every_family = pytest.mark.parametrize("family", sorted(BLOCKS))


def tiny(family: str = "resnet", size_px: int = 32, **network: object) -> Settings:
    """Settings of networks with two levels."""
    values = {"blocks": family, "widths": [4, 8], "noise_size": Z, "embedding_size": 8}
    return parse_settings({"data": {"size_px": size_px}, "network": values | network})


def inputs(size_px: int = 32, k: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Random conditions [N, 1, H, W], labels [N] and noise [N, k, Z]."""
    condition = torch.rand(N, 1, size_px, size_px) * 2 - 1
    return condition, torch.tensor([0, 2]), torch.randn(N, k, Z)

"""The sampling temperature of a model, chosen on other pairs than those it is scored on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aalnet.networks import Generator
from cluster.training.held_out import HeldOut

SAMPLES = 4  # of each condition, for the choice: features of all temperatures are dear


def best_temperatures(
    held_out: HeldOut, generator: Generator, temperatures: Sequence[float]
) -> Tensor:
    """One temperature [N] for each held-out pair, by the energy scores of the other half."""
    if len(temperatures) == 1 or len(held_out.targets) < 2:
        return torch.full((len(held_out.targets),), temperatures[0])
    energies = [held_out.energy_scores(generator, SAMPLES, one) for one in temperatures]
    return cross_fitted(torch.stack(energies), temperatures)


def cross_fitted(scores: Tensor, temperatures: Sequence[float]) -> Tensor:
    """For the even pairs the temperature that is best on the odd ones, and the other way round.

    scores [T, N], lower is better -> [N]
    """
    odd = torch.arange(scores.shape[1]) % 2 == 1
    chosen = torch.empty(scores.shape[1])
    for half in (odd, ~odd):
        chosen[half] = temperatures[int(scores[:, ~half].mean(dim=1).argmin())]
    return chosen

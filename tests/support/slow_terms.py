"""The terms as slow references of plain numbers and loops.

They follow docs/objective.md, not the code: `math` on floats for values, autograd on single
float64 numbers for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

SCALE = 0.3
SMOOTHING = 0.01  # eps of d
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

Number = Any  # a float, or a Tensor of no dimensions
Nested = list[Any]

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
any_k = pytest.mark.parametrize("k", [1, 2, 4])


def uniform(*shape: int, dtype: torch.dtype, seed: int = 0, reach: float = 1.7) -> Tensor:
    """Values of [-reach, reach] that the seed and the number of dimensions decide; a leaf."""
    generator = torch.Generator().manual_seed(1000 * seed + len(shape))
    values = (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1) * reach
    return values.to(dtype).requires_grad_()


def scalars(tensor: Tensor) -> tuple[Nested, list[Tensor]]:
    """The tensor as nested lists of float64 numbers, each a leaf of its own, and those leaves."""
    leaves = [value.clone().requires_grad_() for value in tensor.detach().double().flatten()]
    nested: Nested = list(leaves)
    for size in reversed(tensor.shape[1:]):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    return nested, leaves


def call(name: str, x: Number) -> Number:
    """A function by its name: torch's of a Tensor, `math`'s of a float."""
    return getattr(x, name)() if isinstance(x, Tensor) else getattr(math, name)(x)


def still(nested: Any) -> Any:
    """The same lists of plain floats, with no gradient."""
    if isinstance(nested, list):
        return [still(part) for part in nested]
    return nested.item() if isinstance(nested, Tensor) else nested


def flat(nested: Any) -> list[Number]:
    """The numbers of nested lists, one after the other."""
    return [x for part in nested for x in flat(part)] if isinstance(nested, list) else [nested]


def clamped(nested: Any) -> Any:
    """Nested numbers within [-1, 1]; what lies outside has no gradient."""
    if isinstance(nested, list):
        return [clamped(part) for part in nested]
    return nested if -1 <= nested <= 1 else math.copysign(1.0, still(nested))


def slow_distance(a: Nested, b: Nested) -> Number:
    """Smoothed mean absolute difference d of two images."""
    pairs = list(zip(flat(a), flat(b), strict=True))
    roots = [call("sqrt", (p - q) * (p - q) + SMOOTHING**2) for p, q in pairs]
    return sum(roots) / len(roots) - SMOOTHING


def slow_density(point: Nested, centres: list[Nested]) -> Number:
    """Mean of the kernels that stand on the centres, at a point."""
    kernels = [call("exp", slow_distance(point, centre) / -SCALE) for centre in centres]
    return sum(kernels) / len(centres)


def slow_sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x)."""
    return 1 / (1 + call("exp", -x))


def slow_log_likelihood(samples: Nested, target: Nested) -> Number:
    """Logarithm of the raw samples' density at the target."""
    return call("log", slow_density(target, samples))


def slow_entropy(samples: Nested) -> Number:
    """Mean surprise of each clamped sample at all others; 0 of one."""
    if len(samples) == 1:
        return 0.0
    samples, total = clamped(samples), 0.0
    for i, own in enumerate(samples):
        others = [sample for j, sample in enumerate(samples) if j != i]
        total = total - call("log", slow_density(own, others))
    return total / len(samples)


def slow_summed_density(samples: Nested) -> Number:
    """Sum of the clamped samples' own density at each of them."""
    samples = clamped(samples)
    return sum(slow_density(own, samples) for own in samples)


def slow_reward(samples: Nested, fake: Nested, real: Number) -> Number:
    """REINFORCE of the judge's scores against the mean of the others; 0 of one."""
    k = len(samples)
    if k == 1:
        return 0.0
    scores = [slow_sigmoid(still(score) - still(real)) for score in fake]
    samples, total = clamped(samples), 0.0
    for i in range(k):
        baseline = sum(scores[j] for j in range(k) if j != i) / (k - 1)
        total = total + (scores[i] - baseline) * call(
            "log", slow_density(still(samples[i]), samples)
        )
    return total / k


def slow_realism(fake: Nested, real: Number) -> Number:
    """How far the samples look more real than the target: relativistic."""
    return sum(call("log", slow_sigmoid(score - real)) for score in fake) / len(fake)


def slow_separation(fake: Nested, real: Number) -> Number:
    """How far the target looks more real than the samples: relativistic."""
    return sum(call("log", slow_sigmoid(real - score)) for score in fake) / len(fake)


def apart(found: Tensor, wanted: Sequence[float]) -> float:
    """Relative difference of two vectors; absolute where the wanted one is 0."""
    expected = torch.tensor(wanted, dtype=torch.float64)
    difference = (found.detach().double().flatten() - expected).norm().item()
    return difference / (expected.norm().item() or 1.0)

"""The terms as slow references of plain numbers and loops.

They follow docs/objective.md, not the code: `math` on floats for values, autograd on single
float64 numbers for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
any_width = pytest.mark.parametrize("width", [1.0, 100.0])  # of the kernels


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


def slow_log_density(point: Nested, centres: list[Nested], width: float) -> Number:
    """Logarithm of the mean of the widened kernels on the centres, times their width."""
    reach = SCALE * width
    kernels = [call("exp", slow_distance(point, centre) / -reach) for centre in centres]
    return width * call("log", sum(kernels) / len(centres))


def slow_sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x)."""
    return 1 / (1 + call("exp", -x))


def slow_log_likelihood(samples: Nested, target: Nested, width: float = 1.0) -> Number:
    """Logarithm of the raw samples' density at the target."""
    return slow_log_density(target, samples, width)


def slow_entropy(samples: Nested, width: float = 1.0) -> Number:
    """Mean surprise of each clamped sample at all others; 0 of one."""
    if len(samples) == 1:
        return 0.0
    samples, total = clamped(samples), 0.0
    for i, own in enumerate(samples):
        others = [sample for j, sample in enumerate(samples) if j != i]
        total = total - slow_log_density(own, others, width)
    return total / len(samples)


def slow_summed_density(samples: Nested, width: float = 1.0) -> Number:
    """Sum of the clamped samples' own density at each of them."""
    samples = clamped(samples)
    return sum(call("exp", slow_log_density(own, samples, width)) for own in samples)


def slow_reward(samples: Nested, fake: Nested, real: Nested, width: float = 1.0) -> Number:
    """REINFORCE of the judge's scores against the mean of the others; 0 of one."""
    k = len(samples)
    if k == 1:
        return 0.0
    scores = [mean(slow_sigmoid(still(a) - still(b)) for a, b in patches(own, real))
              for own in fake]  # fmt: skip
    samples, total = clamped(samples), 0.0
    for i in range(k):
        baseline = sum(scores[j] for j in range(k) if j != i) / (k - 1)
        point = still(samples[i])
        total = total + (scores[i] - baseline) * slow_log_density(point, samples, width)
    return total / k


def slow_realism(fake: Nested, real: Nested) -> Number:
    """How far the samples' patches look more real than the target's: relativistic."""
    pairs = [pair for own in fake for pair in patches(own, real)]
    return mean(call("log", slow_sigmoid(a - b)) for a, b in pairs)


def slow_separation(fake: Nested, real: Nested) -> Number:
    """How far the target's patches look more real than the samples': relativistic."""
    pairs = [pair for own in fake for pair in patches(own, real)]
    return mean(call("log", slow_sigmoid(b - a)) for a, b in pairs)


def slow_code_recovery(code: Nested, read: Nested) -> Number:
    """Mean absolute difference of a code and what was read of it."""
    return mean(abs(a - b) for a, b in zip(code, read, strict=True))


def patches(fake: Nested, real: Nested) -> list[tuple[Number, Number]]:
    """Each patch's logit of a sample beside the target's."""
    return list(zip(fake, real, strict=True))


def mean(numbers: Iterable[Number]) -> Number:
    """Their sum over their count."""
    listed = list(numbers)
    return sum(listed) / len(listed)


def apart(found: Tensor, wanted: Sequence[float]) -> float:
    """Relative difference of two vectors; absolute where the wanted one is 0."""
    expected = torch.tensor(wanted, dtype=torch.float64)
    difference = (found.detach().double().flatten() - expected).norm().item()
    return difference / (expected.norm().item() or 1.0)

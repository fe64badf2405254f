"""Each figure of an evaluation alone, against loops and formulas written out by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from aalnet.evaluation import diversity, kernel_distance, structural_similarity, with_channels


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def kernel_distance_by_hand(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3, term by term."""
    n, size = real.shape

    def mean(a: Tensor, b: Tensor, same_set: bool) -> float:
        terms = [
            (float(a[i] @ b[j]) / size + 1) ** 3
            for i, j in itertools.product(range(n), range(n))
            if not (same_set and i == j)
        ]
        return math.fsum(terms) / len(terms)

    return mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)


def test_kernel_distance_by_hand() -> None:
    real = uniform(12, 5, seed=0).double()
    fake = uniform(12, 5, seed=1).double() + 0.5
    by_hand = kernel_distance_by_hand(real, fake)
    assert by_hand > 0.1
    assert kernel_distance(real, fake) == pytest.approx(by_hand, rel=1e-12)


def test_kernel_distance_of_one_distribution_is_about_zero() -> None:
    real, again = uniform(300, 4, seed=0).double(), uniform(300, 4, seed=1).double()
    apart = kernel_distance(real, again + 0.5)
    assert abs(kernel_distance(real, again)) < 0.01 * apart
    assert abs(kernel_distance(real, real)) < 0.01 * apart  # below 0: the estimate is unbiased


def test_kernel_distance_is_the_same_to_the_last_bit_whatever_the_global_seed() -> None:
    real, fake = uniform(40, 6, seed=0).double(), uniform(40, 6, seed=1).double()
    values = set()
    for seed in range(8):
        torch.manual_seed(seed)
        values.add(kernel_distance(real, fake))
    assert len(values) == 1


def test_kernel_distance_does_not_depend_on_order() -> None:
    real, fake = uniform(40, 6, seed=0).double(), uniform(40, 6, seed=1).double()
    assert kernel_distance(real.flip(0), fake) == pytest.approx(
        kernel_distance(real, fake), rel=1e-9
    )


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_diversity_by_hand(k: int) -> None:
    samples = uniform(4, k, 2, 3, 3, seed=k)
    found = diversity(samples)
    for row, value in zip(samples, found, strict=True):
        pairs = [(a - b).abs().mean() for a, b in itertools.combinations(row, 2)]
        expected = float(sum(pairs)) / len(pairs) if pairs else 0.0
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_diversity_of_equal_samples_is_exactly_zero() -> None:
    samples = uniform(3, 1, 3, 4, 4, seed=0).expand(-1, 4, -1, -1, -1)
    assert torch.equal(diversity(samples), torch.zeros(3))


def test_structural_similarity_is_black_at_minus_one() -> None:
    dark, light = torch.full((1, 1, 8, 8), -0.5), torch.full((1, 1, 8, 8), 0.5)
    assert float(structural_similarity(light, light)) == pytest.approx(1)
    # Two flat images leave SSIM's first factor: 2 a b / (a^2 + b^2), a and b counted from black.
    a, b, c1 = 0.5, 1.5, (0.01 * 2) ** 2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert float(structural_similarity(dark, light)) == pytest.approx(expected, rel=1e-3)


def test_with_channels() -> None:
    grey, colour = uniform(2, 1, 4, 4, seed=0), uniform(2, 3, 4, 4, seed=1)
    assert torch.equal(with_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    assert torch.equal(with_channels(colour, 3), colour)
    torch.testing.assert_close(with_channels(colour, 1), colour.mean(dim=1, keepdim=True))
    torch.testing.assert_close(with_channels(colour, 2)[:, 1], colour.mean(dim=1))

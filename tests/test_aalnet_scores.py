"""Each score alone, against loops and formulas written out by hand, and what it must tell apart."""

import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from aalnet.evaluation import few_pairs, with_channels
from aalnet.scores import (
    Estimate,
    diversity,
    feature_diversity,
    feature_energy_score,
    kernel_distance,
    label_following,
    next_labels,
    pixel_energy_score,
    structural_similarity,
)

FEATURES = 6


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Estimates


def test_estimate_is_the_mean_and_its_standard_error() -> None:
    found = Estimate.of(torch.tensor([1.0, 2.0, 6.0]))
    assert found.value == pytest.approx(3.0)
    assert found.standard_error == pytest.approx(statistics.stdev([1, 2, 6]) / math.sqrt(3))
    assert math.isnan(Estimate.of(torch.tensor([1.0])).standard_error)


# The kernel distance


def kernel(a: Tensor, b: Tensor) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def kernel_distance_by_hand(real: Tensor, fake: Tensor, *, own: bool = False) -> float:
    """Squared MMD term by term; `own`: with a sample against its own target, as KID has it."""
    n, k = fake.shape[:2]
    total = 0.0
    for i, j in itertools.permutations(range(n), 2):
        total += kernel(real[i], real[j])
        total += sum(kernel(fake[i, m], fake[j, m]) for m in range(k)) / k
        if not own:
            total -= 2 * sum(kernel(real[i], fake[j, m]) for m in range(k)) / k
    if own:
        every = [kernel(real[i], fake[j, 0]) for i in range(n) for j in range(n)]
        return total / (n * (n - 1)) - 2 * math.fsum(every) / n**2
    return total / (n * (n - 1))


def pairs(n: int, seed: int, shift: float = 0.4) -> tuple[Tensor, Tensor]:
    """Targets [n, F] and one sample of each: both near their condition, samples a little off."""
    conditions = 1.5 * normal(n, FEATURES, seed=3 * seed)
    targets = conditions + 0.5 * normal(n, FEATURES, seed=3 * seed + 1)
    samples = conditions + 0.5 * normal(n, FEATURES, seed=3 * seed + 2) + shift
    return targets, samples[:, None]


def test_kernel_distance_by_hand() -> None:
    real, fake = uniform(9, 5, seed=0).double(), uniform(9, 3, 5, seed=1).double() + 0.5
    by_hand = kernel_distance_by_hand(real, fake)
    assert by_hand > 0.1
    assert kernel_distance(real, fake).value == pytest.approx(by_hand, rel=1e-12)


Distance = Callable[[Tensor, Tensor], float]


def mean_over_draws(distance: Distance, n: int, draws: int) -> Estimate:
    values = [distance(*pairs(n, seed=1000 * n + draw)) for draw in range(draws)]
    return Estimate.of(torch.tensor(values))


def z_score(a: Estimate, b: Estimate) -> float:
    return abs(a.value - b.value) / math.hypot(a.standard_error, b.standard_error)


def with_own_targets(real: Tensor, fake: Tensor) -> float:
    """The estimate of earlier versions, in closed form."""
    n, size = real.shape
    own = (real * fake[:, 0]).sum(dim=1) / size
    others = (real @ fake[:, 0].T / size + 1) ** 3
    shared = (own + 1) ** 3
    unpaired = (others.sum() - shared.sum()) / (n * (n - 1))
    return kernel_distance(real, fake).value + 2 * float(unpaired - others.mean())


def test_kernel_distance_does_not_depend_on_the_number_of_pairs() -> None:
    sizes = {20: 240, 40: 120, 80: 60, 160: 30}
    fair = {
        n: mean_over_draws(lambda r, f: kernel_distance(r, f).value, n, sizes[n]) for n in sizes
    }
    biased = {n: mean_over_draws(with_own_targets, n, sizes[n]) for n in sizes}
    for n in (20, 40, 80):
        assert z_score(fair[n], fair[160]) < 3
    # What it replaces rewards likeness to the own target, the more the fewer pairs there are.
    assert biased[20].value < biased[40].value < biased[80].value < biased[160].value
    assert z_score(biased[20], biased[160]) > 10


def test_the_biased_estimate_is_what_kid_has() -> None:
    real, fake = pairs(8, seed=5)
    by_hand = kernel_distance_by_hand(real, fake, own=True)
    assert with_own_targets(real, fake) == pytest.approx(by_hand, rel=1e-9)


def test_kernel_distance_of_one_distribution_is_about_zero() -> None:
    values = Estimate.of(
        torch.tensor([kernel_distance(*pairs(60, seed, shift=0.0)).value for seed in range(40)])
    )
    assert abs(values.value) < 3 * values.standard_error
    assert values.standard_error < 0.2 * kernel_distance(*pairs(60, seed=0, shift=0.4)).value


def test_standard_error_of_the_kernel_distance_is_its_spread_over_draws() -> None:
    found = [kernel_distance(*pairs(80, seed)) for seed in range(60)]
    spread = statistics.stdev(each.value for each in found)
    told = statistics.mean(each.standard_error for each in found)
    assert 0.7 < told / spread < 1.4


def test_kernel_distance_is_the_same_for_pairs_in_another_order() -> None:
    real, fake = pairs(50, seed=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    here, there = kernel_distance(real, fake), kernel_distance(real[order], fake[order])
    assert there.value == pytest.approx(here.value, rel=1e-9)
    assert there.standard_error == pytest.approx(here.standard_error, rel=1e-9)
    torch.manual_seed(7)  # nothing in it is random
    assert kernel_distance(real, fake) == here


# Energy scores


def energy_by_hand(target: np.ndarray, samples: np.ndarray, root_mean: bool) -> float:
    """One image's, in float64."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        squares = [float(x - y) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        return math.sqrt(math.fsum(squares) / (len(squares) if root_mean else 1))

    to_target = [distance(target, sample) for sample in samples]
    between = [distance(a, b) for a, b in itertools.permutations(samples, 2)]
    spread = math.fsum(between) / len(between) if between else 0.0
    return math.fsum(to_target) / len(to_target) - spread / 2


@pytest.mark.parametrize("k", [1, 2, 5])
def test_energy_scores_by_hand(k: int) -> None:
    targets, samples = uniform(4, 2, 3, 3, seed=0), uniform(4, k, 2, 3, 3, seed=k)
    rows = list(zip(targets.double().numpy(), samples.double().numpy(), strict=True))
    in_pixels = [energy_by_hand(*row, root_mean=True) for row in rows]
    assert pixel_energy_score(targets, samples).tolist() == pytest.approx(in_pixels, rel=1e-5)
    flat = feature_energy_score(targets.flatten(1).double(), samples.flatten(2).double())
    in_features = [energy_by_hand(*row, root_mean=False) for row in rows]
    assert flat.tolist() == pytest.approx(in_features, rel=1e-12)


@pytest.mark.parametrize(
    "score",
    [feature_energy_score, lambda y, s: pixel_energy_score(y[..., None, None], s[..., None, None])],
    ids=["features", "pixels"],
)
def test_energy_score_is_best_for_the_true_distribution(
    score: Callable[[Tensor, Tensor], Tensor],
) -> None:
    n, k = 600, 6
    targets, draws = normal(n, FEATURES, seed=0), normal(n, k, FEATURES, seed=1)
    true = score(targets, draws)
    # Neither the average, nor a wide scatter, nor a narrow one, nor a shifted one.
    for other in (0 * draws, 3 * draws, 0.4 * draws, draws + 0.5):
        worse = Estimate.of(score(targets, other) - true)
        assert worse.value > 4 * worse.standard_error


def test_energy_score_is_fair_for_any_number_of_samples() -> None:
    n = 4000
    targets, draws = normal(n, FEATURES, seed=0), normal(n, 8, FEATURES, seed=1)
    two, eight = (Estimate.of(feature_energy_score(targets, draws[:, :k])) for k in (2, 8))
    assert z_score(two, eight) < 3


# Diversity


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_diversity_by_hand(k: int) -> None:
    samples = uniform(4, k, 2, 3, 3, seed=k)
    in_features = feature_diversity(samples.flatten(2))
    for row, value, length in zip(samples, diversity(samples), in_features, strict=True):
        couples = list(itertools.combinations(row, 2))
        count = max(len(couples), 1)
        expected = float(sum((a - b).abs().mean() for a, b in couples)) / count
        assert float(value) == pytest.approx(expected, rel=1e-5)
        expected = sum(float((a - b).norm()) for a, b in couples) / count
        assert float(length) == pytest.approx(expected, rel=1e-5)


def test_diversity_of_equal_samples_is_exactly_zero() -> None:
    samples = uniform(3, 1, 3, 4, 4, seed=0).expand(-1, 4, -1, -1, -1)
    assert torch.equal(diversity(samples), torch.zeros(3))
    assert torch.equal(feature_diversity(samples.flatten(2)), torch.zeros(3))


# Labels


def by_label(n: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [n] of three, their means [3, F] so far apart, and targets [n, F] about them."""
    labels = torch.arange(n) % 3
    means = apart * normal(3, FEATURES, seed=seed)
    return labels, means, means[labels] + normal(n, FEATURES, seed=seed + 1)


def test_next_labels() -> None:
    assert next_labels(torch.tensor([4, 1, 9, 1])).tolist() == [9, 4, 1, 4]
    assert next_labels(torch.tensor([2, 2])).tolist() == [2, 2]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_label_following_is_the_share_of_the_way(share: float) -> None:
    labels, means, targets = by_label(90, apart=1.0)
    moves = share * (means[next_labels(labels)] - means[labels]) + normal(90, FEATURES, seed=7)
    found = Estimate.of(label_following(moves, labels, targets))
    assert abs(found.value - share) < 3 * found.standard_error
    assert found.standard_error < 0.15


def test_label_following_is_not_pulled_down_by_few_targets() -> None:
    values = []
    for seed in range(0, 400, 2):
        labels, means, targets = by_label(12, apart=2.0, seed=seed)
        moves = means[next_labels(labels)] - means[labels]
        values.append(label_following(moves, labels, targets).mean())
    found = Estimate.of(torch.stack(values))
    assert found.value == pytest.approx(1.0, abs=0.05)


def test_label_following_of_labels_without_a_difference_says_nothing() -> None:
    same = normal(1, FEATURES, seed=0).expand(8, -1)
    assert label_following(same, torch.arange(8) % 2, same).shape == (0,)
    # One image a label: how well its mean is known cannot be said.
    assert label_following(same[:3], torch.arange(3), normal(3, FEATURES, seed=1)).shape == (0,)


# Likeness


def test_structural_similarity_is_black_at_minus_one() -> None:
    dark, light = torch.full((1, 1, 8, 8), -0.5), torch.full((1, 1, 8, 8), 0.5)
    assert float(structural_similarity(light, light)) == pytest.approx(1)
    # Two flat images leave SSIM's first factor: 2 a b / (a^2 + b^2), a and b counted from black.
    a, b, c1 = 0.5, 1.5, (0.01 * 2) ** 2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert float(structural_similarity(dark, light)) == pytest.approx(expected, rel=1e-3)


def test_few_pairs_are_told() -> None:
    assert few_pairs(100) is None
    assert "99 held-out pairs are few" in str(few_pairs(99))


def test_with_channels() -> None:
    grey, colour = uniform(2, 1, 4, 4, seed=0), uniform(2, 3, 4, 4, seed=1)
    assert torch.equal(with_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    assert torch.equal(with_channels(colour, 3), colour)
    torch.testing.assert_close(with_channels(colour, 1), colour.mean(dim=1, keepdim=True))
    torch.testing.assert_close(with_channels(colour, 2)[:, 1], colour.mean(dim=1))

"""Scores of samples against targets: distances of distributions, likeness, and diversity.

Pure functions of pixels in [-1, 1] (every difference is on that scale: black to white is 2) or of
features. A score is strictly proper where only the true distribution has the best expected value:
the energy scores are; L1 and its best of k are not (an average wins the one, a scatter the other).

Shapes: N images, k samples of each, C channels, H W pixels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

DATA_RANGE = 2.0  # white minus black


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and its standard error (NaN where one image leaves none)."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The mean of independent values [N]."""
        values = values.double()
        deviation = values.std() if len(values) > 1 else values.new_tensor(math.nan)
        return cls(float(values.mean()), float(deviation) / math.sqrt(len(values)))


def kernel_distance(real: Tensor, fake: Tensor) -> Estimate:
    """Squared MMD with KID's kernel (x.y / F + 1)^3 between targets and samples of them.

    The U-statistic of Gretton et al. 2012 (JMLR 13, lemma 6), a mean over i != j of

        k(y_i, y_j) + k(s_i, s_j) - k(y_i, s_j) - k(s_i, y_j)

    and over the k samples. Target i and sample i share their condition, so they depend on each
    other: with the terms i = i, as KID has them, likeness to the own target is rewarded and the
    value depends on N. The standard error is that of the means over j, the first-order term.

    real [N, F], fake [N, k, F] of N >= 2 -> about 0 for one distribution (at times below)
    """
    n, size = real.shape
    real, fake = real.double(), fake.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / size + 1) ** 3

    h = kernel(real, real)
    for sample in fake.unbind(dim=1):
        cross = kernel(real, sample)
        h = h + (kernel(sample, sample) - cross - cross.T) / fake.shape[1]
    by_image = h.fill_diagonal_(0).sum(dim=1) / (n - 1)  # [N]
    first_order = Estimate.of(by_image)
    return Estimate(first_order.value, 2 * first_order.standard_error)


def feature_energy_score(real: Tensor, fake: Tensor) -> Tensor:
    """mean_k d(y, s_k) - 1/2 mean_{j != k} d(s_j, s_k), d the Euclidean distance of features.

    Strictly proper (Gneiting and Raftery 2007); fair, for the mean leaves j = k out.
    real [N, F], fake [N, k, F] -> [N], 0 or more in expectation; lower is better
    """
    to_target = _length(fake - real[:, None]).mean(dim=1)
    return to_target - feature_diversity(fake) / 2


def pixel_energy_score(targets: Tensor, samples: Tensor) -> Tensor:
    """The energy score with d the root mean square of pixels.

    targets [N, C, H, W], samples [N, k, C, H, W] -> [N]
    """
    to_target = root_mean_square(samples - targets[:, None]).mean(dim=1)
    return to_target - _mean_of_pairs(samples, lambda a, b: root_mean_square(a - b)) / 2


def feature_diversity(fake: Tensor) -> Tensor:
    """Mean over pairs of samples of the Euclidean distance of features.  [N, k, F] -> [N]"""
    return _mean_of_pairs(fake, lambda a, b: _length(a - b))


def diversity(samples: Tensor) -> Tensor:
    """Mean over pairs of samples of mean |difference|.  [N, k, C, H, W] -> [N] in [0, 2]"""
    return _mean_of_pairs(samples, mean_difference)


def label_following(moves: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """How far another label moves samples along the way between the two labels' mean targets.

    moves [N, F]: a sample's features with the next label (`next_labels`) less those with its own,
    of equal noise; labels int64 [N]; targets [N, F] -> [at most N], to be averaged: 0 where the
    label is ignored, 1 where samples move as the means of the targets do. Where labels come with
    other conditions, not only with other answers, less than 1 is right.

    Squared lengths of the ways are unbiased: the means' own variance is subtracted. A label of one
    image has none and is left out; so is everything where targets do not differ by label.
    """
    following = next_labels(labels)
    rows, lengths = [], []
    for label in torch.unique(labels):
        here, there = labels == label, labels == following[labels == label][0]
        if min(here.sum(), there.sum()) < 2:
            continue
        way = targets[there].mean(dim=0) - targets[here].mean(dim=0)
        noise = sum(targets[of].var(dim=0).sum() / of.sum() for of in (here, there))
        rows.append(moves[here] @ way)
        lengths.append((way.square().sum() - noise).expand(len(rows[-1])))
    if not rows or torch.cat(lengths).mean() <= 0:
        return moves.new_zeros(0)
    return torch.cat(rows) / torch.cat(lengths).mean()


def next_labels(labels: Tensor) -> Tensor:
    """For each image the label after its own, of those there are, the first after the last.

    int64 [N] -> [N]
    """
    present, index = torch.unique(labels, return_inverse=True)
    following: Tensor = present[(index + 1) % len(present)]
    return following


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean |a - b| over channels and pixels.  [..., C, H, W] -> [...] in [0, 2]"""
    return (a - b).abs().mean(dim=(-3, -2, -1))


def root_mean_square(difference: Tensor) -> Tensor:
    """Over channels and pixels.  [..., C, H, W] -> [...]"""
    return _length(difference.flatten(-3)) / math.sqrt(math.prod(difference.shape[-3:]))


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM per image.  [N, C, H, W] -> [N] in [-1, 1]

    SSIM compares means as ratios, so black must be 0: images are moved to [0, 2] first.
    """
    ssim = structural_similarity_index_measure(
        a + 1, b + 1, data_range=DATA_RANGE, reduction="none"
    )
    assert isinstance(ssim, Tensor)
    return ssim


def _length(features: Tensor) -> Tensor:
    """Euclidean.  [..., F] -> [...]"""
    length: Tensor = torch.linalg.vector_norm(features, dim=-1)
    return length


def _mean_of_pairs(samples: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean of a distance over the pairs of k samples, 0 for k = 1.  [N, k, ...] -> [N]"""
    n, k = samples.shape[:2]
    # Pair by pair: all at once they would take k times the memory of the samples.
    pairs = [distance(samples[:, i], samples[:, j]) for i, j in combinations(range(k), 2)]
    return torch.stack(pairs).mean(dim=0) if pairs else samples.new_zeros(n)

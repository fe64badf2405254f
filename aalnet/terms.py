"""The terms of the objective: pure functions, one value per condition, no weight, no mean.

Equation numbers are the article's; docs/objective.md has each as printed and as done here.
"Larger is better" unless a name says penalty. The pairwise terms see samples clamped to
[-1, 1]: unclamped, `entropy` drives them to infinity. `log_likelihood` sees them raw.

Shapes: N conditions, K samples, J images judged, P patches of an image, each with its logit of D,
C channels, H W pixels, Z noise size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from aalnet.density import Density
from aalnet.errors import ConfigError

Terms = dict[str, Tensor]


def log_likelihood(samples: Tensor, target: Tensor, density: Density) -> Tensor:
    """log p(y|x): the target under the density of the samples. Eq. 3.3, first term.

    samples [N, K, C, H, W], target [N, C, H, W] -> [N]
    """
    return density.log(target[:, None], samples)[:, 0]


def realism(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """lambda's psi(D): mean logsigmoid(D(x, mu_k) - D(x, y)). Eq. 2.4 and 3.3, second term.

    fake_logits [N, J, P], real_logits [N, P] -> [N]
    """
    return F.logsigmoid(fake_logits - real_logits[:, None]).mean(dim=(1, 2))


def entropy(samples: Tensor, density: Density) -> Tensor:
    """eta's term: - mean_k log p(mu_k | x) under the other samples. Eq. 3.3, third.

    The entropy of the density, estimated by leaving one out; 0 when K = 1.
    samples [N, K, C, H, W] -> [N]
    """
    n, k = samples.shape[:2]
    if k == 1:
        return samples.new_zeros(n)
    samples = samples.clamp(-1, 1)
    first, second = torch.triu_indices(k, k, offset=1, device=samples.device)
    d = density.distance(samples[:, first], samples[:, second])  # [N, pairs]
    others = samples.new_zeros(n, k, k).index_put((_all(n, d), first[None], second[None]), d)
    others = (others + others.mT)[:, ~torch.eye(k, dtype=torch.bool, device=d.device)]
    return -density.log_of(others.view(n, k, k - 1)).mean(dim=1)


def _all(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)[:, None]


def offset(own: Iterable[Tensor], other: Iterable[Tensor]) -> Tensor:
    """Penalty ||own - other||^2 / ||other||^2 with `other` held still. Eq. 2.5.

    own, other: encoder parameters of G and D (or of D and G), equal in shape -> scalar
    """
    pairs = [(a, b.detach()) for a, b in zip(own, other, strict=True)]
    apart = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    size = torch.stack([b.square().sum() for _, b in pairs]).sum()
    return apart / size


def summed_density(samples: Tensor, density: Density) -> Tensor:
    """sum_k p(mu_k|x), whose gradient `density_flatness` penalises. Eq. 3.3, fourth term.

    samples [N, K, C, H, W] -> [N]
    """
    samples = samples.clamp(-1, 1)
    return density.log(samples, samples).exp().sum(dim=1)


def reward(samples: Tensor, fake_logits: Tensor, real_logits: Tensor, density: Density) -> Tensor:
    """beta's R: mean_k A_k * log p(stop(mu_k)|x). Eq. 3.4, first term.

    R_k = mean over patches of sigmoid(D(x, mu_k) - D(x, y)) without gradient;
    A_k = R_k - mean_{j != k} R_j, the leave-one-out baseline; 0 when J = 1.
    samples [N, J, C, H, W], fake_logits [N, J, P], real_logits [N, P] -> [N]
    """
    n, judged = fake_logits.shape[:2]
    if judged == 1:
        return samples.new_zeros(n)
    score = torch.sigmoid(fake_logits - real_logits[:, None]).mean(dim=2).detach()
    advantage = score - (score.sum(dim=1, keepdim=True) - score) / (judged - 1)
    samples = samples.clamp(-1, 1)
    return (advantage * density.log(samples.detach(), samples)).mean(dim=1)


def separation(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """L_D = mean logsigmoid(D(x, y) - D(x, mu_k)): what D maximises. Eq. 3.3 and 3.4.

    Its gradient in theta_G is what `response` penalises.
    fake_logits [N, J, P], real_logits [N, P] -> [N]
    """
    return F.logsigmoid(real_logits[:, None] - fake_logits).mean(dim=(1, 2))


def accuracy(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Share of logits at which D finds a sample less real than the target; 1/2 is a draw.

    Not trained on.  fake_logits [N, J, P], real_logits [N, P] -> [N]
    """
    return (real_logits[:, None] > fake_logits).to(fake_logits.dtype).mean(dim=(1, 2))


def real_accuracy(real_logits: Tensor) -> Tensor:
    """Share of logits by whose sign D takes the target for a match. Not trained on.

    real_logits [N, P] -> [N]
    """
    return (real_logits > 0).to(real_logits.dtype).mean(dim=1)


def fake_accuracy(fake_logits: Tensor) -> Tensor:
    """Share of logits by whose sign D takes samples for none. Not trained on.

    fake_logits [N, J, P] -> [N]
    """
    return (fake_logits < 0).to(fake_logits.dtype).mean(dim=(1, 2))


def image_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Penalty sum_j ||d D(x, y_j) / d y_j||^2 that keeps D smooth (R1 on real, R2 on generated).

    D(x, y_j) is the mean over patches.
    logits [N, J, P] computed from images [N, J, C, H, W] with requires_grad -> [N]
    """
    (gradient,) = torch.autograd.grad(logits.mean(dim=2).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)


def code_recovery(codes: Tensor, mean: Tensor) -> Tensor:
    """Penalty mean |z - mean of q(z | x, c, G(x, c, z))|: can z be read off the sample? BicycleGAN.

    codes [N, Z], mean [N, Z] -> [N]
    """
    return (codes - mean).abs().mean(dim=1)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The one place where weights are applied: sum over terms of weight * sum over conditions.

    Raises:
        ConfigError: a term has no weight of its name.
    """
    if not terms.keys() <= weights.keys():
        raise ConfigError(f"terms {sorted(terms)} but weights only for {sorted(weights)}")
    return torch.stack([weights[name] * value.sum() for name, value in terms.items()]).sum()

"""The terms of the objective: pure functions, one value per condition, no weight, no mean.

Equation numbers are the article's; docs/objective.md has each as printed and as done here.
"Larger is better" unless a name says penalty. The pairwise terms see samples clamped to
[-1, 1]: unclamped, `entropy` drives them to infinity. `log_likelihood` sees them raw.

Shapes: N conditions, K samples, J images judged, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from aalnet.density import distance, log_density, pairwise_distances
from aalnet.errors import ConfigError

Terms = dict[str, Tensor]


def log_likelihood(samples: Tensor, target: Tensor, scale: float) -> Tensor:
    """log p(y|x): the target under the mixture of samples. Eq. 3.3, first term.

    samples [N, K, C, H, W], target [N, C, H, W] -> [N]
    """
    return log_density(distance(samples, target[:, None]), scale)


def realism(fake_logits: Tensor, real_logit: Tensor) -> Tensor:
    """lambda's psi(D): mean_k logsigmoid(D(x, mu_k) - D(x, y)). Eq. 2.4 and 3.3, second term.

    fake_logits [N, K], real_logit [N] -> [N]
    """
    return F.logsigmoid(fake_logits - real_logit[:, None]).mean(dim=1)


def entropy(samples: Tensor, scale: float) -> Tensor:
    """eta's term: - mean_k log[1/(K-1) * sum_{j != k} exp(-d(mu_k, mu_j)/b)]. Eq. 3.3, third.

    The entropy of the mixture, estimated by leaving one out; 0 when K = 1.
    samples [N, K, C, H, W] -> [N]
    """
    n, k = samples.shape[:2]
    if k == 1:
        return samples.new_zeros(n)
    samples = samples.clamp(-1, 1)
    first, second = torch.triu_indices(k, k, offset=1, device=samples.device)
    d = distance(samples[:, first], samples[:, second])  # [N, pairs]
    others = samples.new_zeros(n, k, k).index_put((_all(n, d), first[None], second[None]), d)
    others = (others + others.mT)[:, ~torch.eye(k, dtype=torch.bool, device=d.device)]
    return -log_density(others.view(n, k, k - 1), scale).mean(dim=1)


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


def summed_density(samples: Tensor, scale: float) -> Tensor:
    """sum_k p(mu_k|x), whose gradient `density_flatness` penalises. Eq. 3.3, fourth term.

    samples [N, K, C, H, W] -> [N]
    """
    samples = samples.clamp(-1, 1)
    return log_density(pairwise_distances(samples, samples), scale).exp().sum(dim=1)


def reward(samples: Tensor, fake_logits: Tensor, real_logit: Tensor, scale: float) -> Tensor:
    """beta's R: mean_k A_k * log p(stop(mu_k)|x). Eq. 3.4, first term.

    R_k = sigmoid(D(x, mu_k) - D(x, y)) without gradient; A_k = R_k - mean_{j != k} R_j, the
    leave-one-out baseline; 0 when K = 1.
    samples [N, K, C, H, W], fake_logits [N, K], real_logit [N] -> [N]
    """
    n, k = fake_logits.shape
    if k == 1:
        return samples.new_zeros(n)
    score = torch.sigmoid(fake_logits - real_logit[:, None]).detach()
    advantage = score - (score.sum(dim=1, keepdim=True) - score) / (k - 1)
    samples = samples.clamp(-1, 1)
    log_p = log_density(pairwise_distances(samples.detach(), samples), scale)
    return (advantage * log_p).mean(dim=1)


def separation(fake_logits: Tensor, real_logit: Tensor) -> Tensor:
    """L_D = mean_k logsigmoid(D(x, y) - D(x, mu_k)): what D maximises. Eq. 3.3 and 3.4.

    Its gradient in theta_G is what `response` penalises.
    fake_logits [N, K], real_logit [N] -> [N]
    """
    return F.logsigmoid(real_logit[:, None] - fake_logits).mean(dim=1)


def accuracy(fake_logits: Tensor, real_logit: Tensor) -> Tensor:
    """Share of samples that D finds less real than the target; 1/2 is a draw. Not trained on.

    fake_logits [N, K], real_logit [N] -> [N]
    """
    return (real_logit[:, None] > fake_logits).to(fake_logits.dtype).mean(dim=1)


def real_accuracy(real_logit: Tensor) -> Tensor:
    """Whether D takes the target for a match, by the logit's sign. Not trained on.  [N] -> [N]"""
    return (real_logit > 0).to(real_logit.dtype)


def fake_accuracy(fake_logits: Tensor) -> Tensor:
    """Share of samples that D takes for none, by the logit's sign. Not trained on.

    fake_logits [N, K] -> [N]
    """
    return (fake_logits < 0).to(fake_logits.dtype).mean(dim=1)


def image_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Penalty sum_j ||d D(x, y_j) / d y_j||^2 that keeps D smooth (R1 on real, R2 on generated).

    logits [N, J] computed from images [N, J, C, H, W] with requires_grad -> [N]
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Penalty KL(q(z|x,y) || N(0, 1)) of the VAE.  [N, Z], [N, Z] -> [N]"""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The one place where weights are applied: sum over terms of weight * sum over conditions.

    Raises:
        ConfigError: a term has no weight of its name.
    """
    if not terms.keys() <= weights.keys():
        raise ConfigError(f"terms {sorted(terms)} but weights only for {sorted(weights)}")
    return torch.stack([weights[name] * value.sum() for name, value in terms.items()]).sum()

"""DDM, the data-driven module: trains D, and forms G's objective against the updated D.

Article 2.4 and 3.3. MEM (mem.py) corrects G afterwards by its own gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aalnet import terms
from aalnet.batch import Batch
from aalnet.settings import ObjectiveSettings
from aalnet.state import TrainState
from aalnet.terms import Terms

ACCURACIES = ("discriminator_accuracy", "real_accuracy", "fake_accuracy")


def judge(state: TrainState, batch: Batch, samples: Tensor) -> tuple[Tensor, Tensor]:
    """D on the samples and on the target in one pass.

    samples [n, K, Cy, H, W] -> fake logits [n, K], real logit [n]
    """
    images = torch.cat([batch.target[:, None], samples], dim=1)
    with state.autocast():
        logits = state.discriminator(batch.condition, images, batch.label)
    return logits[:, 1:], logits[:, 0]


def discriminator_terms(state: TrainState, batch: Batch, samples: Tensor) -> Terms:
    """What D maximises, with samples detached from G (3.3); terms of weight 0 are left out."""
    objective = state.settings.objective
    fake, real = judge(state, batch, samples)
    values = {
        "separation": terms.separation(fake, real),
        **accuracies(fake, real),
    }
    if objective.eta * objective.offset_share:
        own, other = state.discriminator.encoder, state.generator.encoder
        distance = terms.offset(own.parameters(), other.parameters())
        values["discriminator_offset"] = distance.expand(len(real))
    return values | smoothness_terms(state, batch, samples)


def accuracies(fake: Tensor, real: Tensor) -> Terms:
    """How often D is right: by pairs, as its loss sees them, and on each side alone."""
    fake, real = fake.detach(), real.detach()
    return {
        "discriminator_accuracy": terms.accuracy(fake, real),
        "real_accuracy": terms.real_accuracy(real),
        "fake_accuracy": terms.fake_accuracy(fake),
    }


def smoothness_terms(state: TrainState, batch: Batch, samples: Tensor) -> Terms:
    """D's gradient penalty on the target and on one sample, due every `r1_interval` steps.

    One sample stands for all K: they are alike in distribution, and cost 1/K of all.
    """
    objective = state.settings.objective
    if not objective.r1 or not state.due(objective.r1_interval):
        return {}
    images = torch.stack([batch.target, samples[:, 0]], dim=1).requires_grad_()
    logits = state.discriminator(batch.condition, images, batch.label)
    return {"image_gradient": terms.image_gradient(logits, images)}


def discriminator_weights(objective: ObjectiveSettings) -> dict[str, float]:
    """Weights by name of term; the lazy penalty counts for the steps it was not due."""
    return {
        "separation": 1.0,
        **dict.fromkeys(ACCURACIES, 0.0),
        "discriminator_offset": -objective.eta * objective.offset_share,
        "image_gradient": -0.5 * objective.r1 * objective.r1_interval,
    }


def generator_terms(
    state: TrainState, batch: Batch, samples: Tensor, fake: Tensor, real: Tensor
) -> Terms:
    """G's own objective against the updated D (2.4, 3.3); terms of weight 0 are left out."""
    objective = state.settings.objective
    values = {"log_likelihood": terms.log_likelihood(samples, batch.target, objective.scale)}
    if objective.lambda_:
        values["realism"] = terms.realism(fake, real)
    if objective.eta:
        values["entropy"] = terms.entropy(samples, objective.scale)
    if objective.eta * objective.offset_share:
        own, other = state.generator.encoder, state.discriminator.encoder
        values["offset"] = terms.offset(own.parameters(), other.parameters()).expand(len(real))
    return values


def generator_weights(objective: ObjectiveSettings) -> dict[str, float]:
    """Weights by name of term, DDM's and MEM's."""
    return {
        "log_likelihood": 1.0,
        "realism": objective.lambda_,
        "entropy": objective.eta,
        "offset": -objective.eta * objective.offset_share,
        "reward": objective.beta,
    }

"""DDM, the data-driven module: trains D, and forms G's objective against the updated D.

Article 2.4 and 3.3. MEM (mem.py) corrects G afterwards by its own gradient.

Shapes: n conditions of this worker's slice, K samples of the prior, J images judged, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aalnet import terms
from aalnet.batch import Batch
from aalnet.phases import Phase, starts
from aalnet.settings import ObjectiveSettings
from aalnet.state import TrainState
from aalnet.terms import Terms
from aalnet.update import frozen

ACCURACIES = ("discriminator_accuracy", "real_accuracy", "fake_accuracy")


@dataclass(frozen=True)
class Draw:
    """What G draws in a step: of one code of the proposal q, and of codes of the prior."""

    proposed: Tensor  # [n, 1, Cy, H, W]; [n, 0, ...] without a proposal
    prior: Tensor  # [n, K, Cy, H, W]; [n, 0, ...] in a phase without
    codes: Tensor  # [n, K, Z], the prior's samples are drawn from them; without gradient
    kl: Tensor | None  # [n], of q to the prior

    def judged(self, objective: ObjectiveSettings) -> Tensor:
        """What D sees beside the target: [n, J, Cy, H, W]."""
        return (
            torch.cat([self.proposed, self.prior], 1) if objective.judges_proposal else self.prior
        )


def draw(state: TrainState, batch: Batch, phase: Phase) -> Draw:
    """One step's samples; the condition is encoded once for all of them."""
    generator, objective = state.generator, state.objective
    prior_samples = objective.K if phase.prior or phase.adversary else 0
    noise = batch.noise[:, 1 : 1 + prior_samples]
    with state.autocast():
        skips, summary = generator.encode(batch.condition)
        prior = generator.prior(summary, generator.label(batch.label))
        of_prior = prior.codes(noise)
        codes, kl = [of_prior], None
        if objective.proposal:
            proposal = state.proposal(batch.condition, batch.target, batch.label)
            codes, kl = [proposal.codes(batch.noise[:, :1]), of_prior], proposal.kl(prior)
        samples = generator.render(batch.condition, skips, batch.label, torch.cat(codes, dim=1))
    proposed, drawn = samples.tensor_split([1 if objective.proposal else 0], dim=1)
    return Draw(proposed, drawn, of_prior.detach(), kl)


def judge(state: TrainState, batch: Batch, images: Tensor) -> Tensor:
    """D on images [n, J, Cy, H, W] -> logits [n, J, P]"""
    with state.autocast():
        logits: Tensor = state.discriminator(batch.condition, images, batch.label)
    return logits


def discriminator_terms(state: TrainState, batch: Batch, samples: Tensor) -> tuple[Terms, Tensor]:
    """What D maximises, with samples [n, J, ...] detached from G (3.3); terms of weight 0 are left
    out. Besides, D's logits of the target [n, P], to which G's terms compare its samples."""
    objective = state.objective
    logits = judge(state, batch, torch.cat([batch.target[:, None], samples], dim=1))
    real, fake = logits[:, 0], logits[:, 1:]
    values = {"separation": terms.separation(fake, _reference(objective, real))}
    if not objective.relativistic:
        values["separation"] = values["separation"] + terms.separation(_zero(fake), real)
    values |= {
        "discriminator_accuracy": terms.accuracy(fake.detach(), real.detach()),
        "real_accuracy": terms.real_accuracy(real.detach()),
        "fake_accuracy": terms.fake_accuracy(fake.detach()),
    }
    if objective.eta * objective.offset_share:
        own, other = state.discriminator.encoder, state.generator.encoder
        distance = terms.offset(own.parameters(), other.parameters())
        values["discriminator_offset"] = distance.expand(len(real))
    if objective.r1 and state.due(objective.r1_interval):
        values["image_gradient"] = _image_gradient(state, batch, samples)
    return values, real.detach()


def _reference(objective: ObjectiveSettings, real: Tensor) -> Tensor:
    """What a sample's logits are compared with: the target's, or none (the classical GAN)."""
    return real if objective.relativistic else _zero(real)


def _zero(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits)


def _image_gradient(state: TrainState, batch: Batch, samples: Tensor) -> Tensor:
    """At the target and at one sample, which stands for all J at 1/J of the cost."""
    images = torch.stack([batch.target, samples[:, 0]], dim=1).requires_grad_()
    logits = state.discriminator(batch.condition, images, batch.label)
    return terms.image_gradient(logits, images)


def discriminator_weights(objective: ObjectiveSettings) -> dict[str, float]:
    """Weights by name of term; the lazy penalty counts for the steps it was not due."""
    return {
        "separation": 1.0,
        **dict.fromkeys(ACCURACIES, 0.0),
        "discriminator_offset": -objective.eta * objective.offset_share,
        "image_gradient": -0.5 * objective.r1 * objective.r1_interval,
    }


def generator_terms(state: TrainState, batch: Batch, samples: Draw, phase: Phase) -> Terms:
    """G's own objective without D (3.3): the likelihood by q's code, and by the prior's where they
    work, with entropy; terms of weight 0 are left out."""
    objective, density, values = state.objective, state.density, Terms()
    if samples.kl is not None:
        values["log_likelihood"] = terms.log_likelihood(samples.proposed, batch.target, density)
        values["kl"] = samples.kl
    if phase.prior:
        values["prior_likelihood"] = terms.log_likelihood(samples.prior, batch.target, density)
        if objective.eta:
            values["entropy"] = terms.entropy(samples.prior, density)
    return values


def adversarial_terms(
    state: TrainState, batch: Batch, samples: Draw, fake: Tensor, real: Tensor
) -> Terms:
    """G's terms against the updated D (2.4, 3.3): fake logits [n, J, P], real ones [n, P]."""
    objective, values = state.objective, Terms()
    if objective.lambda_:
        values["realism"] = terms.realism(fake, _reference(objective, real))
    if objective.eta * objective.offset_share:
        own, other = state.generator.encoder, state.discriminator.encoder
        values["offset"] = terms.offset(own.parameters(), other.parameters()).expand(len(real))
    if objective.code_recovery:
        with frozen(state.proposal), state.autocast():
            read = state.proposal(batch.condition, samples.prior[:, 0], batch.label)
        values["code_recovery"] = terms.code_recovery(samples.codes[:, 0], read.mean)
    return values


def generator_weights(state: TrainState) -> dict[str, float]:
    """Weights by name of term, DDM's and MEM's; the KL's rises from 0 at the start of the run, and
    lambda where D begins: it must learn something before G heeds it."""
    objective, images = state.objective, state.settings.run.images
    _, adversary = starts(objective, images)
    kl = objective.kl * _risen(state.images_seen, objective.kl_warmup * images)
    heeded = _risen(state.images_seen - adversary, objective.lambda_warmup * (images - adversary))
    return {
        "log_likelihood": 1.0,
        "kl": -kl,
        "prior_likelihood": 1.0,
        "entropy": objective.eta,
        "realism": objective.lambda_ * heeded,
        "offset": -objective.eta * objective.offset_share,
        "code_recovery": -objective.code_recovery,
        "reward": objective.beta,
    }


def _risen(images: float, over: float) -> float:
    """Linear from 0 to 1 over so many images; 1 where there are none."""
    return min(1.0, max(0.0, images) / over) if over > 0 else 1.0

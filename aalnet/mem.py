"""MEM, the model-estimation module: corrects G by a reward and by its own gradient.

Article 2.5 and 3.4. The two squared gradient norms are taken as penalties: with the printed
sign they would reward ever larger gradients (docs/objective.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from aalnet import terms
from aalnet.batch import Batch, World
from aalnet.penalties import OutputFunction, Parameters, squared_norm_gradient
from aalnet.phases import Phase
from aalnet.state import TrainState
from aalnet.terms import Terms


def reward_terms(state: TrainState, judged: Tensor, fake: Tensor, real: Tensor) -> Terms:
    """Raise the density of samples that D scores better than their siblings (3.4, first).

    judged [n, J, Cy, H, W], fake logits [n, J, P], real ones [n, P]; nothing to do for J = 1.
    """
    if not state.objective.beta or judged.shape[1] == 1:
        return {}
    return {"reward": terms.reward(judged, fake, real, state.density)}


def add_penalty_gradients(state: TrainState, batch: Batch, phase: Phase, world: World) -> Terms:
    """Add this worker's share of the penalties' gradients to G's; returns the raw penalties.

    Due every `penalty_interval` steps, with the weight scaled by the interval; `density_flatness`
    where the prior works, `response` where D does.
    """
    objective = state.objective
    parameters: Parameters = dict(state.generator.named_parameters())
    share_of_k = 1 / math.sqrt(objective.K)  # 3.3 divides the flatness by it
    penalties: dict[str, tuple[float, float, Callable[[TrainState, Batch], OutputFunction]]] = {}
    if objective.flatness and phase.prior:
        penalties["density_flatness"] = (objective.flatness, share_of_k, _summed_density)
    if objective.gamma and phase.adversary:
        penalties["response"] = (objective.gamma, 1.0, _separation)
    measured: Terms = {}
    for name, (weight, factor, function) in penalties.items():
        squared_norm, gradients = squared_norm_gradient(
            function(state, batch),
            parameters,
            method=objective.penalty_method,
            step=objective.penalty_step,
            world=world,
        )
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            share = gradient * (weight * factor * objective.penalty_interval)
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        measured[name] = squared_norm * factor
    return measured


def _summed_density(state: TrainState, batch: Batch) -> OutputFunction:
    """f = mean over the global batch of sum_k p(mu_k|x), by way of the samples (3.3, fourth)."""

    def value(samples: Tensor) -> Tensor:
        return terms.summed_density(samples, state.density).sum() / batch.global_images

    return OutputFunction(output=partial(_draw, state, batch), value=value)


def _separation(state: TrainState, batch: Batch) -> OutputFunction:
    """f = mean over the global batch of L_D, by way of D's logits (3.4, second)."""
    with torch.no_grad():
        real = state.discriminator(batch.condition, batch.target, batch.label)

    def output(parameters: Parameters) -> Tensor:
        samples = _draw(state, batch, parameters)
        logits: Tensor = state.discriminator(batch.condition, samples, batch.label)
        return logits

    def value(fake: Tensor) -> Tensor:
        return terms.separation(fake, real).sum() / batch.global_images

    return OutputFunction(output, value)


def _draw(state: TrainState, batch: Batch, parameters: Parameters) -> Tensor:
    arguments = (batch.condition, batch.label, batch.noise[:, 1 : 1 + state.objective.K])
    samples: Tensor = functional_call(state.generator, parameters, arguments)
    return samples

"""MEM, the model-estimation module: corrects G by a reward and by its own gradient.

Article 2.5 and 3.4. The two squared gradient norms are taken as penalties: with the printed
sign they would reward ever larger gradients (docs/objective.md).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from aalnet import terms
from aalnet.batch import Batch, World
from aalnet.penalties import OutputFunction, Parameters, squared_norm_gradient
from aalnet.state import TrainState
from aalnet.terms import Terms


def reward_terms(state: TrainState, samples: Tensor, fake: Tensor, real: Tensor) -> Terms:
    """Raise the density of samples that D scores better than their siblings (3.4, first)."""
    objective = state.settings.objective
    if not objective.beta:
        return {}
    return {"reward": terms.reward(samples, fake, real, objective.scale)}


def add_penalty_gradients(state: TrainState, batch: Batch, world: World) -> Terms:
    """Add this worker's share of both penalties' gradients to G's; returns the raw penalties.

    Due every `penalty_interval` steps, with the weight scaled by the interval.
    """
    objective = state.settings.objective
    parameters: Parameters = dict(state.generator.named_parameters())
    measured: Terms = {}
    penalties = {
        "density_flatness": (
            objective.flatness / math.sqrt(objective.K),
            _summed_density(state, batch),
        ),
        "response": (objective.gamma, _separation(state, batch)),
    }
    for name, (weight, objective_of) in penalties.items():
        if not weight:
            continue
        squared_norm, gradients = squared_norm_gradient(
            objective_of,
            parameters,
            method=objective.penalty_method,
            step=objective.penalty_step,
            world=world,
        )
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            share = gradient * (weight * objective.penalty_interval)
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        measured[name] = squared_norm
    if "density_flatness" in measured:
        measured["density_flatness"] = measured["density_flatness"] / math.sqrt(objective.K)
    return measured


def _summed_density(state: TrainState, batch: Batch) -> OutputFunction:
    """f = mean over the global batch of sum_k p(mu_k|x), by way of the samples (3.3, fourth)."""

    def value(samples: Tensor) -> Tensor:
        density = terms.summed_density(samples, state.settings.objective.scale)
        return density.sum() / batch.global_images

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
    arguments = (batch.condition, batch.label, batch.noise)
    samples: Tensor = functional_call(state.generator, parameters, arguments)
    return samples

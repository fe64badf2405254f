"""The other systems as corners of AALNet: each trains as the few lines here that say what it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import logsigmoid

from aalnet.corners import CORNERS
from aalnet.gaussian import Gaussian
from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.step import train_step
from tests.support.tiny_steps import (
    BATCH,
    apart,
    global_batch,
    new_state,
    settings_of,
    train,
    vector,
    weights_of,
)

F64 = torch.float64
STEPS, RATE = 3, 1e-4
PLAIN = {"name": "sgd", "lr": RATE, "momentum": 0.0, "clip_norm": 1e9, "warmup_images": 0,
         "decay_share": 0.0}  # fmt: skip
SCALE, KL, WARM_UP, LAMBDA, RECOVERY = 0.2, 0.5, 0.1, 0.7, 0.3


def settings(model: str) -> Settings:
    objective = {"scale": SCALE, "kl": KL, "kl_warmup": WARM_UP, "lambda": LAMBDA, "r1": 0.0,
                 "code_recovery": RECOVERY}  # fmt: skip
    return settings_of(model, objective=objective, optimizer=PLAIN)


def state_of(model: str) -> TrainState:
    """A state whose prior is no longer N(0, 1)."""
    state = new_state(settings(model), F64)
    noise = torch.Generator().manual_seed(1)
    nn.init.normal_(state.generator.moments.weight, std=0.2, generator=noise)
    return state


# By hand: x condition, y target, c label, e noise [N, 1 + K, Z]; G, D, q the networks.


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, smooth at 0, in units of b. -> [N]"""
    return (((a - b) ** 2 + 0.01**2).sqrt().mean(dim=(1, 2, 3)) - 0.01) / SCALE


def normal(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mean, gaussian.log_std.exp())


def kl_weight(step: int) -> float:
    return KL * min(1.0, step * BATCH / (WARM_UP * 100))


def ascend(value: Tensor, *networks: nn.Module) -> None:
    """One step of plain gradient ascent."""
    parameters = [p for network in networks for p in network.parameters()]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += RATE * (0 if gradient is None else gradient)


def train_vae(state: TrainState) -> None:
    """Sohn et al. 2015: one code of q, and the divergence from q to a learned prior."""
    G, q = state.generator, state.proposal
    for step in range(STEPS):
        batch = global_batch(step * BATCH, F64)
        x, y, c, e = batch.condition, batch.target, batch.label, batch.noise
        skips, summary = G.encode(x)
        posterior, prior = normal(q(x, y, c)), normal(G.prior(summary, G.label(c)))
        z = posterior.mean + posterior.stddev * e[:, 0]
        divergence = kl_divergence(posterior, prior).sum(dim=1)
        drawn = G.render(x, skips, c, z[:, None])[:, 0]
        ascend(-(l1(drawn, y) + kl_weight(step) * divergence).mean(), G, q)


def train_gan(state: TrainState) -> None:
    """Isola et al. 2017: an absolute difference, and a classical adversary that judges patches."""
    G, D = state.generator, state.discriminator
    for step in range(STEPS):
        batch = global_batch(step * BATCH, F64)
        x, y, c, e = batch.condition, batch.target, batch.label, batch.noise
        drawn = G(x, c, e[:, 1:2])[:, 0]
        ascend(logsigmoid(D(x, y, c)).mean() + logsigmoid(-D(x, drawn.detach(), c)).mean(), D)
        ascend(-l1(drawn, y).mean() + LAMBDA * logsigmoid(D(x, drawn, c)).mean(), G)


def train_vae_gan(state: TrainState) -> None:
    """Zhu et al. 2017: cVAE-GAN and cLR-GAN with one D; G alone learns to be read."""
    G, D, q = state.generator, state.discriminator, state.proposal
    for step in range(STEPS):
        batch = global_batch(step * BATCH, F64)
        x, y, c, e = batch.condition, batch.target, batch.label, batch.noise
        skips, summary = G.encode(x)
        posterior, prior = normal(q(x, y, c)), normal(G.prior(summary, G.label(c)))
        z_encoded = posterior.mean + posterior.stddev * e[:, 0]
        z = prior.mean + prior.stddev * e[:, 1]
        encoded, drawn = (G.render(x, skips, c, code[:, None])[:, 0] for code in (z_encoded, z))
        divergence = kl_divergence(posterior, prior).sum(dim=1)
        false = [logsigmoid(-D(x, image.detach(), c)).mean() for image in (encoded, drawn)]
        ascend(logsigmoid(D(x, y, c)).mean() + (false[0] + false[1]) / 2, D)
        fooled = sum(logsigmoid(D(x, image, c)).mean() for image in (encoded, drawn)) / 2
        q.requires_grad_(False)
        read = (q(x, drawn, c).mean - z.detach()).abs().mean()
        q.requires_grad_(True)
        likely = -(l1(encoded, y) + kl_weight(step) * divergence).mean()
        ascend(likely + LAMBDA * fooled - RECOVERY * read, G, q)


@pytest.mark.parametrize(
    ("model", "by_hand", "networks"),
    [
        ("vae", train_vae, {"generator", "proposal"}),
        ("gan", train_gan, {"generator", "discriminator"}),
        ("vae-gan", train_vae_gan, {"generator", "proposal", "discriminator"}),
    ],
)
def test_a_corner_trains_as_it_does_by_hand(
    model: str, by_hand: Callable[[TrainState], None], networks: set[str]
) -> None:
    state, other, start = state_of(model), state_of(model), state_of(model)
    train(state, STEPS)
    by_hand(other)
    assert state.networks.keys() == networks
    for name in networks:
        found, wanted, before = (
            vector(list(each.networks[name].parameters())) for each in (state, other, start)
        )
        assert apart(found - before, wanted - before) < 1e-9, name
        assert apart(wanted, before) > 1e-5, name


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_aalnet_can_be_set_to_be_one(model: str) -> None:
    """Its own settings reach the corners; only code_recovery is the vae-gan's alone."""
    fixed = {
        ("lambda" if key == "lambda_" else key): value for key, value in CORNERS[model].items()
    }
    ends = []
    for name, objective in ((model, {}), ("aalnet", fixed)):
        state = new_state(settings_of(name, objective=objective))
        train(state, 2)
        ends.append(weights_of(state))
    assert torch.equal(*ends)


def test_what_a_vae_gan_says_of_itself() -> None:
    state = new_state(settings_of("vae-gan"))
    assert train_step(state, global_batch(0)).keys() == {
        "log_likelihood", "kl", "realism", "code_recovery", "generator_norm", "separation",
        "discriminator_accuracy", "real_accuracy", "fake_accuracy", "discriminator_norm",
    }  # fmt: skip

"""The other two systems of the article, on the same networks, loop and files.

`gan`: conditional GAN with L1 and one sample per condition, as pix2pix. `vae`: conditional
VAE with an encoder q(z|x, y). They are what every AALNet claim is measured against.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from aalnet import ddm, terms
from aalnet.batch import ALONE, Batch, World
from aalnet.state import TrainState
from aalnet.step import train_step
from aalnet.update import apply, backward, frozen, require_finite

Step = Callable[[TrainState, Batch, World], dict[str, float]]


def gan_step(state: TrainState, batch: Batch, world: World = ALONE) -> dict[str, float]:
    """One step of the conditional GAN with L1; the first noise vector of each condition only."""
    settings = state.settings
    with state.autocast():
        samples = state.generator(batch.condition, batch.label, batch.noise[:, :1])

    fake, real = ddm.judge(state, batch, samples.detach())
    d_terms = {
        "real_probability": F.logsigmoid(real),
        "fake_probability": F.logsigmoid(-fake[:, 0]),
        **ddm.accuracies(fake, real),
    } | ddm.smoothness_terms(state, batch, samples.detach())
    d_weights = {"real_probability": 1.0, "fake_probability": 1.0}
    backward(d_terms, ddm.discriminator_weights(settings.objective) | d_weights, batch)
    measured = apply(state, "discriminator", d_terms, batch, world)

    with frozen(state.discriminator):
        fake, _ = ddm.judge(state, batch, samples)
        l1 = (samples[:, 0] - batch.target).abs().mean(dim=(1, 2, 3))
        g_terms = {"l1": l1, "adversarial": F.logsigmoid(fake[:, 0])}
        weights = {"l1": -settings.baseline.l1, "adversarial": settings.baseline.adversarial}
        backward(g_terms, weights, batch)
    measured |= apply(state, "generator", g_terms, batch, world)

    values = require_finite(measured, state.images_seen)
    state.advance(batch.global_images)
    return values


def vae_step(state: TrainState, batch: Batch, world: World = ALONE) -> dict[str, float]:
    """One step of the conditional VAE: the log-likelihood of one draw of q, and its KL."""
    settings = state.settings
    with state.autocast():
        mean, log_variance = state.posterior(batch.condition, batch.target)
        code = mean + (0.5 * log_variance).exp() * batch.noise[:, 0]
        samples = state.generator(batch.condition, batch.label, code[:, None])
    g_terms = {
        "log_likelihood": terms.log_likelihood(samples, batch.target, settings.objective.scale),
        "kl": terms.kl_divergence(mean, log_variance),
    }
    backward(g_terms, {"log_likelihood": 1.0, "kl": -settings.baseline.kl}, batch)
    measured = apply(state, "generator", g_terms, batch, world)

    values = require_finite(measured, state.images_seen)
    state.advance(batch.global_images)
    return values


STEPS: dict[str, Step] = {"aalnet": train_step, "gan": gan_step, "vae": vae_step}

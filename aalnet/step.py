"""The AALNet step, as the article reads: DDM, then MEM, then the update.

G draws K samples -> DDM updates D, then forms G's objective against it -> MEM adds the
reward and the gradient penalties -> gradients are summed over workers, clipped, applied.
"""

from __future__ import annotations

from aalnet import ddm, mem
from aalnet.batch import ALONE, Batch, World
from aalnet.state import TrainState
from aalnet.update import apply, backward, frozen, require_finite


def train_step(state: TrainState, batch: Batch, world: World = ALONE) -> dict[str, float]:
    """One step on this worker's slice of the global batch (article 2.4, 2.5, 3.3, 3.4).

    Returns the raw terms as means over the global batch, and the gradient norms.

    Raises:
        NonFiniteError: a term or a gradient is NaN or infinite; the state is then spoilt.
    """
    objective = state.settings.objective
    with state.autocast():
        samples = state.generator(batch.condition, batch.label, batch.noise)  # [n, K, Cy, H, W]

    d_terms = ddm.discriminator_terms(state, batch, samples.detach())
    backward(d_terms, ddm.discriminator_weights(objective), batch)
    measured = apply(state, "discriminator", d_terms, batch, world)

    with frozen(state.discriminator):
        fake, real = ddm.judge(state, batch, samples)
        g_terms = ddm.generator_terms(state, batch, samples, fake, real)
        g_terms |= mem.reward_terms(state, samples, fake, real)
        backward(g_terms, ddm.generator_weights(objective), batch)
        if state.due(objective.penalty_interval):
            measured |= mem.add_penalty_gradients(state, batch, world)
    measured |= apply(state, "generator", g_terms, batch, world)

    values = require_finite(measured, state.images_seen)
    state.advance(batch.global_images)
    return values

"""The step, as the article reads: DDM, then MEM, then the update. One for all models.

G draws samples of the proposal and of the prior -> DDM updates D, then forms G's objective against
it -> MEM adds the reward and the gradient penalties -> gradients are summed over workers, clipped,
applied. Which parts work is the phase's (phases.py); what makes a vae or a gan of it, corners.py.
"""

from __future__ import annotations

from aalnet import ddm, mem
from aalnet.batch import ALONE, Batch, World
from aalnet.state import TrainState
from aalnet.terms import Terms
from aalnet.update import apply, backward, frozen, require_finite


def train_step(state: TrainState, batch: Batch, world: World = ALONE) -> dict[str, float]:
    """One step on this worker's slice of the global batch (article 2.4, 2.5, 3.3, 3.4).

    Returns the raw terms as means over the global batch, and the gradient norms.

    Raises:
        NonFiniteError: a term or a gradient is NaN or infinite; the state is then spoilt.
    """
    objective, phase, measured = state.objective, state.phase, Terms()
    samples = ddm.draw(state, batch, phase)
    g_terms = ddm.generator_terms(state, batch, samples, phase)

    if phase.adversary:
        judged = samples.judged(objective)  # [n, J, Cy, H, W]
        d_terms, real = ddm.discriminator_terms(state, batch, judged.detach())
        backward(d_terms, ddm.discriminator_weights(objective), batch)
        measured |= apply(state, "discriminator", d_terms, batch, world)

        with frozen(state.discriminator):
            fake = ddm.judge(state, batch, judged)
        g_terms |= ddm.adversarial_terms(state, batch, samples, fake, real)
        g_terms |= mem.reward_terms(state, judged, fake, real)

    backward(g_terms, ddm.generator_weights(state), batch)
    if state.due(objective.penalty_interval):
        measured |= mem.add_penalty_gradients(state, batch, phase, world)
    measured |= apply(state, "generator", g_terms, batch, world)

    values = require_finite(measured, state.images_seen)
    state.advance(batch.global_images)
    return values

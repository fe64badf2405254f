"""How a step moves the weights: clipping, the rate's schedule, the moving average, what stays."""

import pytest
import torch
from torch import nn

from aalnet.batch import ALONE
from aalnet.settings import OptimizerSettings, RunSettings
from aalnet.step import train_step
from aalnet.update import apply, backward, frozen, learning_rate
from tests.support.tiny_steps import (
    BATCH,
    apart,
    global_batch,
    new_state,
    settings_of,
    train,
    vector,
)


@pytest.mark.parametrize(("clip", "clipped"), [(1e-3, True), (1e9, False)])
def test_clipping_bounds_the_step_and_reports_the_norm_before(clip: float, clipped: bool) -> None:
    plain = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "clip_norm": clip, "warmup_images": 0}
    state = new_state(settings_of(optimizer=plain), torch.float64)
    batch = global_batch(0, torch.float64)
    samples = state.generator(batch.condition, batch.label, batch.noise)
    found = {"log_likelihood": -(samples - 0.1).square().sum(dim=(1, 2, 3, 4))}
    backward(found, {"log_likelihood": 1.0}, batch)
    parameters = [*state.generator.parameters(), *state.proposal.parameters()]
    gradient = vector([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    before = vector(parameters)
    measured = apply(state, "generator", found, batch, ALONE)
    step = before - vector(parameters)
    norm = gradient.norm().item()
    assert norm > 1e-3
    assert measured["generator_norm"].item() == pytest.approx(norm)
    assert measured["log_likelihood"].item() == pytest.approx(found["log_likelihood"].mean().item())
    wanted = 0.5 * gradient * (clip / norm if clipped else 1)
    assert apart(step, wanted) < 1e-9
    assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize("model", ["aalnet", "vae-gan"])
def test_a_step_leaves_no_gradient_and_freezes_none_but_the_average(model: str) -> None:
    state = new_state(settings_of(model))
    train_step(state, global_batch(0))
    for network in (state.generator, state.discriminator, state.proposal):
        assert all(p.grad is None for p in network.parameters())
        assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in state.ema.parameters())


@pytest.mark.parametrize("model", ["aalnet", "vae-gan"])
def test_d_is_trained_by_its_own_terms_alone(model: str) -> None:
    """What G is taught, however loudly, moves D in the next step only."""
    ends = []
    for loud in (1.0, 1000.0):
        objective = {"lambda": loud, "scale": 0.1 / loud, "offset_share": 0.0}
        state = new_state(settings_of(model, objective=objective))
        train_step(state, global_batch(0))
        ends.append(state)
    one, other = ([vector(list(end.networks[name].parameters())) for end in ends]
                  for name in ("discriminator", "generator"))  # fmt: skip
    assert torch.equal(*one)
    assert not torch.equal(*other)


def test_a_d_that_does_not_work_stays_as_it_is() -> None:
    state = new_state(settings_of(objective={"adversary_from": 0.75}))
    before = vector(list(state.discriminator.parameters()))
    train(state, 15)
    assert torch.equal(vector(list(state.discriminator.parameters())), before)
    train(state, 1)
    assert not torch.equal(vector(list(state.discriminator.parameters())), before)


def test_frozen_gives_gradients_back_even_after_an_error() -> None:
    network = nn.Linear(2, 2)

    def flags() -> list[bool]:
        return [p.requires_grad for p in network.parameters()]

    with frozen(network):
        assert flags() == [False, False]
    assert flags() == [True, True]
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    assert flags() == [True, True]


# Schedule and moving average.


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        (0, 1 / 100), (49, 0.5), (99, 1), (100, 1), (500, 1), (700, 1), (850, 0.5), (999, 1 / 300),
        (1000, 0), (2000, 0),
    ],
)  # fmt: skip
def test_learning_rate(seen: int, share: float) -> None:
    optimizer = OptimizerSettings(lr=0.2, warmup_images=100, decay_share=0.3)
    run = RunSettings(images=1000)
    assert learning_rate(optimizer, run, seen) == pytest.approx(0.2 * share, abs=1e-15)


@pytest.mark.parametrize(("seen", "share"), [(0, 1), (999, 1), (5000, 1)])
def test_learning_rate_without_warm_up_and_decay(seen: int, share: float) -> None:
    optimizer = OptimizerSettings(lr=0.2, warmup_images=0, decay_share=0.0)
    assert learning_rate(optimizer, RunSettings(images=1000), seen) == 0.2 * share


def test_every_optimizer_gets_the_scheduled_rate() -> None:
    state = new_state(settings_of(optimizer={"lr": 0.01, "warmup_images": 20}))
    for wanted in (0.01 * 1 / 20, 0.01 * 6 / 20):
        train(state, 1)
        rates = [g["lr"] for o in state.optimizers.values() for g in o.param_groups]
        assert rates == pytest.approx([wanted] * 2)


def test_the_moving_average_follows_its_formula() -> None:
    halflife = 2.0  # images; reached after 40 images, since early on it is 5 % of them
    settings = settings_of(optimizer={"ema_halflife_images": halflife}, run={"images": 1000})
    state = new_state(settings, torch.float64)
    wanted = vector(list(state.ema.parameters()))
    for step in range(12):
        state.generator.output.bias.data.fill_(float(step))
        now = vector(list(state.generator.parameters()))
        early = 0.05 * step * BATCH
        keep = 0.0 if step == 0 else 0.5 ** (BATCH / min(halflife, early))
        wanted = keep * wanted + (1 - keep) * now
        state.advance(BATCH)
        torch.testing.assert_close(vector(list(state.ema.parameters())), wanted)
    assert (state.images_seen, state.steps) == (12 * BATCH, 12)
    assert apart(wanted, now) > 1e-3

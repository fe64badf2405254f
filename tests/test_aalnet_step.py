"""The step: which terms it trains by, with what weight and when; that every model learns."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aalnet import ddm, mem
from aalnet.baselines import STEPS, train_step
from aalnet.batch import ALONE, Batch
from aalnet.settings import parse_settings
from tests.support.tiny_steps import (
    BATCH,
    OFF,
    TINY,
    Recorder,
    global_batch,
    new_state,
    part_of,
    settings_of,
    vector,
    weights_of,
)

# Switches: a weight of 0 removes its term, from the output and from the gradient.

ALWAYS = {
    "separation", *ddm.ACCURACIES, "discriminator_norm", "log_likelihood", "generator_norm",
}  # fmt: skip


def gradients_with(**objective: float) -> tuple[dict[str, float], Tensor, Tensor]:
    """One step without moving D: the values, D's and G's gradients before clipping."""
    still = {"name": "sgd", "lr": 1e-30}
    state = new_state(settings_of(objective=OFF | objective, optimizer=still), torch.float64)
    world = Recorder()
    values = train_step(state, global_batch(0, torch.float64), world)
    sides = {len(list(net.parameters())): name for name, net in state.networks.items()}
    assert len(sides) == 2
    found = {sides[len(c) - 1]: vector(c[:-1]) for c in world.calls if len(c) - 1 in sides}
    return values, found["discriminator"], found["generator"]


@pytest.mark.parametrize(
    ("key", "names", "side"),
    [
        ("lambda", {"realism"}, "generator"),
        ("eta", {"entropy"}, "generator"),
        ("beta", {"reward"}, "generator"),
        ("gamma", {"response"}, "generator"),
        ("flatness", {"density_flatness"}, "generator"),
        ("r1", {"image_gradient"}, "discriminator"),
        ("offset_share", {"offset", "discriminator_offset"}, "both"),
    ],
)
def test_each_weight_switches_its_term_alone(key: str, names: set[str], side: str) -> None:
    fixed = {"eta": 1.0} if key == "offset_share" else {}
    kept = ALWAYS | {"entropy"} if fixed else ALWAYS
    results = [gradients_with(**{key: weight}, **fixed) for weight in (0.0, 0.5, 1.0)]
    values = [result[0] for result in results]
    assert values[0].keys() == kept
    assert values[1].keys() == values[2].keys() == kept | names
    for name in names:
        assert values[1][name] == values[2][name] != 0  # raw, whatever its weight
    for position, name in ((1, "discriminator"), (2, "generator")):
        none, half, full = (result[position] for result in results)
        assert (full - none).norm() == pytest.approx(2 * (half - none).norm().item(), rel=1e-6)
        assert ((full - none).norm() > 0) == (side in (name, "both"))


def test_offset_is_weighed_by_eta_too() -> None:
    values, _, _ = gradients_with(eta=0.0, offset_share=1.0)
    assert values.keys() == ALWAYS


def test_weights_carry_the_articles_signs() -> None:
    objective = settings_of(
        objective={"lambda": 2, "eta": 3, "beta": 5, "offset_share": 7, "r1": 11, "r1_interval": 13}
    ).objective
    assert ddm.generator_weights(objective) == {
        "log_likelihood": 1, "realism": 2, "entropy": 3, "offset": -21, "reward": 5,
    }  # fmt: skip
    assert ddm.discriminator_weights(objective) == {
        "separation": 1, "discriminator_offset": -21, "image_gradient": -0.5 * 11 * 13,
        "discriminator_accuracy": 0, "real_accuracy": 0, "fake_accuracy": 0,
    }  # fmt: skip


def test_a_penalty_weighs_the_steps_it_was_not_due() -> None:
    found = []
    for interval in (1, 4):
        state = new_state(
            settings_of(objective=OFF | {"gamma": 0.1, "penalty_interval": interval}),
            torch.float64,
        )
        mem.add_penalty_gradients(state, global_batch(0, torch.float64), ALONE)
        found.append(vector([p.grad for p in state.generator.parameters()]))
    torch.testing.assert_close(found[1], 4 * found[0])


def test_intervals_name_the_last_step_of_each() -> None:
    state = new_state(settings_of(objective={"penalty_interval": 3, "r1_interval": 2}))
    seen = [train_step(state, global_batch(state.images_seen)).keys() for _ in range(6)]
    assert ["image_gradient" in keys for keys in seen] == [False, True] * 3
    assert ["response" in keys for keys in seen] == [False, False, True] * 2
    assert ["density_flatness" in keys for keys in seen] == [False, False, True] * 2


def test_gan_uses_the_first_noise_alone() -> None:
    states = [new_state(settings_of("gan")) for _ in range(2)]
    batch = global_batch(0)
    one = Batch(batch.condition, batch.target, batch.label, batch.noise[:, :1], BATCH)
    values = [STEPS["gan"](s, b, ALONE) for s, b in zip(states, (batch, one), strict=True)]
    assert values[0] == values[1]
    assert torch.equal(weights_of(states[0]), weights_of(states[1]))


# Does it learn at all, and does it stay whole?


@pytest.mark.parametrize(
    ("model", "name", "better"),
    [("aalnet", "log_likelihood", 1), ("gan", "l1", -1), ("vae", "log_likelihood", 1)],
)
def test_every_model_learns_one_batch(model: str, name: str, better: int) -> None:
    settings = settings_of(model, optimizer={"lr": 2e-3}, run={"images": 10_000})
    state, batch = new_state(settings), global_batch(0)
    values = [STEPS[model](state, batch, ALONE)[name] for _ in range(25)]
    assert better * (values[-1] - values[0]) > 0.1 * abs(values[0])


def test_entropy_does_not_drive_samples_away() -> None:
    """Unclamped, an eta of 0.4 drove samples to infinity within 200 steps."""
    settings = parse_settings(
        {
            "network": TINY,
            "objective": {"eta": 0.4},
            "optimizer": {"warmup_images": 50},
        }
    )
    state = new_state(settings)
    for _ in range(200):
        batch = part_of(global_batch(state.images_seen, k=4), slice(0, 3))
        train_step(state, batch)
    samples = state.generator(batch.condition, batch.label, batch.noise)
    assert samples.abs().max() < 10


# Shape of the code.


@pytest.mark.parametrize("step", list(STEPS.values()), ids=list(STEPS))
def test_a_step_fits_one_screen(step: Callable[..., object]) -> None:
    assert len(inspect.getsource(step).splitlines()) <= 45

"""The step: which terms it trains by, with what weight and in which phase; that models learn."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aalnet import ddm, mem
from aalnet.batch import ALONE, Batch
from aalnet.corners import CORNERS
from aalnet.phases import Phase
from aalnet.settings import parse_settings
from aalnet.step import train_step
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

ALWAYS = {"log_likelihood", "kl", "generator_norm"}
OF_PRIOR = {"prior_likelihood"}
OF_D = {"separation", *ddm.ACCURACIES, "discriminator_norm"}
FROM_THE_START = {  # settings by which a phase is that of the first step
    "proposal": {"ignition_images": 0, "entropy_from": 1.0, "adversary_from": 1.0},
    "ignition": {"ignition_images": 1, "entropy_from": 1.0, "adversary_from": 1.0},
    "prior": {"ignition_images": 0, "entropy_from": 0.0, "adversary_from": 1.0},
    "adversary": {"ignition_images": 0, "entropy_from": 1.0, "adversary_from": 0.0},
    "both": {"ignition_images": 0, "entropy_from": 0.0, "adversary_from": 0.0},
}
WITH_PRIOR, WITH_D = {"ignition", "prior", "both"}, {"adversary", "both"}
SWITCHES = [  # key, its terms, the side that learns by it, phases where it works
    ("lambda", {"realism"}, "generator", WITH_D),
    ("eta", {"entropy"}, "generator", WITH_PRIOR),
    ("beta", {"reward"}, "generator", WITH_D),
    ("gamma", {"response"}, "generator", WITH_D),
    ("flatness", {"density_flatness"}, "generator", WITH_PRIOR),
    ("r1", {"image_gradient"}, "discriminator", WITH_D),
    ("offset_share", {"offset", "discriminator_offset"}, "both", WITH_D),
]
every_switch = pytest.mark.parametrize(
    ("key", "names", "side", "works"), SWITCHES, ids=[key for key, *_ in SWITCHES]
)


def beside(key: str) -> dict[str, Any]:
    """Weights that let D work where the one of this key is 0, and without which it has no say."""
    fixed = {"beta": 1.0} if key == "lambda" else {"lambda": 1.0}
    return fixed | ({"eta": 1.0} if key == "offset_share" else {})


# Switches: a weight of 0 removes its term, from the output and from the gradient.


def gradients_with(**objective: Any) -> tuple[dict[str, float], Tensor, Tensor]:
    """One step without moving D: the values, D's and G's gradients before clipping."""
    still = {"name": "sgd", "lr": 1e-30}
    state = new_state(settings_of(objective=OFF | objective, optimizer=still), torch.float64)
    world = Recorder()
    values = train_step(state, global_batch(0, torch.float64), world)
    counts = {name: len(o.param_groups[0]["params"]) for name, o in state.optimizers.items()}
    assert len({*counts.values(), len(list(state.generator.parameters()))}) == 3
    found = {
        name: vector(call[:-1])
        for call in world.calls for name, count in counts.items() if len(call) - 1 == count
    }  # fmt: skip
    return values, found["discriminator"], found["generator"]


@every_switch
def test_each_weight_switches_its_term_alone(
    key: str, names: set[str], side: str, works: set[str]
) -> None:
    results = [gradients_with(**beside(key), **{key: weight}) for weight in (0.0, 0.5, 1.0)]
    values = [result[0] for result in results]
    kept = values[0].keys()
    assert kept >= ALWAYS | OF_PRIOR | OF_D
    assert not kept & names
    assert values[1].keys() == values[2].keys() == kept | names
    for name in names:
        assert values[1][name] == values[2][name] != 0  # raw, whatever its weight
    for position, name in ((1, "discriminator"), (2, "generator")):
        none, half, full = (result[position] for result in results)
        assert (full - none).norm() == pytest.approx(2 * (half - none).norm().item(), rel=1e-6)
        assert ((full - none).norm() > 0) == (side in (name, "both"))


@pytest.mark.parametrize("phase", list(FROM_THE_START))
def test_every_term_works_in_its_phase(phase: str) -> None:
    settings = settings_of(objective=FROM_THE_START[phase])
    state = new_state(settings)
    state.steps = 1  # penalties are due
    found = train_step(state, global_batch(0)).keys()
    due = [names for _, names, _, works in SWITCHES if phase in works]
    wanted = ALWAYS.union(*due)
    wanted |= OF_PRIOR if phase in WITH_PRIOR else set()
    wanted |= OF_D if phase in WITH_D else set()
    assert found == wanted
    assert state.phase == Phase(prior=phase in WITH_PRIOR - {"ignition"}, adversary=phase in WITH_D)


@every_switch
def test_a_weight_has_no_say_outside_its_phases(
    key: str, names: set[str], side: str, works: set[str]
) -> None:
    for phase in FROM_THE_START.keys() - works:
        ends = []
        for weight in (0.0, 1.0):
            objective = OFF | beside(key) | {key: weight} | FROM_THE_START[phase]
            state = new_state(settings_of(objective=objective))
            values = train_step(state, global_batch(0))
            assert not values.keys() & names
            ends.append(weights_of(state))
        assert torch.equal(*ends)


def test_offset_is_weighed_by_eta_too() -> None:
    values, _, _ = gradients_with(eta=0.0, offset_share=1.0, **{"lambda": 1.0})
    assert values.keys() == ALWAYS | OF_PRIOR | OF_D | {"realism"}


def test_without_a_proposal_the_prior_alone_estimates_the_likelihood() -> None:
    state = new_state(settings_of(objective={"proposal": False}))
    found = train_step(state, global_batch(0)).keys()
    assert found >= {"prior_likelihood", "entropy", "realism"}
    assert not found & {"log_likelihood", "kl"}
    assert state.networks.keys() == {"generator", "discriminator"}


def test_without_a_weight_of_d_there_is_no_d() -> None:
    state = new_state(settings_of(objective={"lambda": 0.0, "beta": 0.0, "gamma": 0.0}))
    found = train_step(state, global_batch(0)).keys()
    assert found == ALWAYS | OF_PRIOR | {"entropy"}
    assert state.networks.keys() == {"generator", "proposal"}


def test_a_reward_wants_two_samples() -> None:
    state = new_state(settings_of(objective={"K": 1}))
    assert "reward" not in train_step(state, global_batch(0))


def test_weights_carry_the_articles_signs() -> None:
    state = new_state(settings_of(
        "vae-gan",
        objective={"lambda": 2, "kl": 4, "kl_warmup": 0.5, "r1": 11, "r1_interval": 13,
                   "code_recovery": 6},
    ))  # fmt: skip
    state.objective = state.objective.model_copy(update={"eta": 3, "beta": 5, "offset_share": 7})
    for images_seen, share in ((0, 0), (10, 0.2), (50, 1), (90, 1)):  # the KL rises over 50
        state.images_seen = images_seen
        assert ddm.generator_weights(state) == {
            "log_likelihood": 1, "kl": -4 * share, "prior_likelihood": 1, "entropy": 3,
            "realism": 2, "offset": -21, "code_recovery": -6, "reward": 5,
        }  # fmt: skip
    assert ddm.discriminator_weights(state.objective) == {
        "separation": 1, "discriminator_offset": -21, "image_gradient": -0.5 * 11 * 13,
        "discriminator_accuracy": 0, "real_accuracy": 0, "fake_accuracy": 0,
    }  # fmt: skip


def test_without_warm_up_a_weight_is_whole_from_the_first_step() -> None:
    state = new_state(settings_of(objective={"kl": 4, "kl_warmup": 0.0, "lambda": 2}))
    weights = ddm.generator_weights(state)
    assert (weights["kl"], weights["realism"]) == (-4, 2)


def test_lambda_rises_where_d_begins() -> None:
    objective = {"lambda": 2, "adversary_from": 0.4, "lambda_warmup": 0.5}
    state = new_state(settings_of(objective=objective, run={"images": 100}))
    found = []
    for state.images_seen in (0, 40, 55, 70, 90):
        found.append(ddm.generator_weights(state)["realism"])
    assert found == pytest.approx([0, 0, 1, 2, 2])


def test_a_penalty_weighs_the_steps_it_was_not_due() -> None:
    found = []
    for interval in (1, 4):
        state = new_state(
            settings_of(objective=OFF | {"gamma": 0.1, "penalty_interval": interval}),
            torch.float64,
        )
        batch, phase = global_batch(0, torch.float64), Phase(prior=True, adversary=True)
        mem.add_penalty_gradients(state, batch, phase, ALONE)
        found.append(vector([p.grad for p in state.generator.parameters()]))
    torch.testing.assert_close(found[1], 4 * found[0])


def test_intervals_name_the_last_step_of_each() -> None:
    state = new_state(settings_of(objective={"penalty_interval": 3, "r1_interval": 2}))
    seen = [train_step(state, global_batch(state.images_seen)).keys() for _ in range(6)]
    assert ["image_gradient" in keys for keys in seen] == [False, True] * 3
    assert ["response" in keys for keys in seen] == [False, False, True] * 2
    assert ["density_flatness" in keys for keys in seen] == [False, False, True] * 2


# Which noise goes where


@pytest.mark.parametrize(
    ("model", "objective", "used"),
    [
        ("vae", {}, {0}),
        ("gan", {}, {1}),
        ("vae-gan", {}, {0, 1}),
        ("aalnet", FROM_THE_START["proposal"], {0}),
        ("aalnet", FROM_THE_START["prior"], {0, 1, 2, 3}),
        ("aalnet", FROM_THE_START["adversary"], {0, 1, 2, 3}),
        ("aalnet", FROM_THE_START["prior"] | {"proposal": False}, {1, 2, 3}),
    ],
)
def test_the_proposal_takes_the_first_noise_and_the_prior_the_others(
    model: str, objective: dict[str, Any], used: set[int]
) -> None:
    settings, batch = settings_of(model, objective=objective), global_batch(0)
    start = new_state(settings)
    train_step(start, batch)
    for i in range(4):
        noise = batch.noise.clone()
        noise[:, i] += 1
        state = new_state(settings)
        train_step(state, Batch(batch.condition, batch.target, batch.label, noise, BATCH))
        assert torch.equal(weights_of(state), weights_of(start)) == (i not in used)


# Does it learn at all, and does it stay whole?


@pytest.mark.parametrize("model", sorted(CORNERS))
def test_every_model_learns_one_batch(model: str) -> None:
    settings = settings_of(model, optimizer={"lr": 2e-3}, run={"images": 10_000})
    state, batch = new_state(settings), global_batch(0)
    name = "prior_likelihood" if model == "gan" else "log_likelihood"
    values = [train_step(state, batch)[name] for _ in range(25)]
    assert values[-1] - values[0] > 0.1 * abs(values[0])


@pytest.mark.parametrize("width", [1.0, 100.0])
def test_entropy_does_not_drive_samples_away(width: float) -> None:
    """Unclamped, an eta of 0.4 drove samples to infinity within 200 steps."""
    settings = parse_settings(
        {
            "network": TINY,
            "objective": {"eta": 0.4, "K": 4, "width": width},
            "optimizer": {"warmup_images": 50},
        }
    )
    state = new_state(settings)
    for _ in range(200):
        batch = part_of(global_batch(state.images_seen, k=4), slice(0, 3))
        assert "entropy" in train_step(state, batch)
    samples = state.generator(batch.condition, batch.label, batch.noise)
    assert samples.abs().max() < 10

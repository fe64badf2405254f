"""A resumed training goes on to the last bit; a checkpoint of another make is refused."""

import pytest
import torch
from torch import Tensor

from aalnet.corners import CORNERS
from aalnet.errors import CheckpointError
from aalnet.state import TrainState
from tests.support.tiny_steps import BATCH, QUARTERS, new_state, settings_of, train, weights_of

NETWORKS = {
    "aalnet": {"generator", "proposal", "discriminator"},
    "gan": {"generator", "discriminator"},
    "vae": {"generator", "proposal"},
    "vae-gan": {"generator", "proposal", "discriminator"},
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("model", sorted(CORNERS))
def test_resume_is_exact(model: str, optimizer: str) -> None:
    settings = settings_of(model, optimizer={"name": optimizer, "lr": 1e-3})
    whole, first = new_state(settings), new_state(settings)
    train(whole, 4)
    train(first, 2)
    again = resumed(first)
    train(again, 2)
    assert_same(again, whole)
    optimizers = {f"{side}_optimizer" for side in {"generator", "discriminator"} & NETWORKS[model]}
    assert whole.tensors().keys() == {*NETWORKS[model], "ema", *optimizers}
    assert all(whole.tensors().values())
    assert (whole.images_seen, whole.steps) == (20, 4)
    assert not torch.equal(weights_of(first), weights_of(whole))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resume_is_exact_in_every_phase(optimizer: str) -> None:
    """Two steps each of ignition, of the proposal alone, of the prior again, and of D besides."""
    settings = settings_of(
        objective=QUARTERS | {"ignition_images": 2 * BATCH},
        optimizer={"name": optimizer, "lr": 1e-3},
        run={"images": 8 * BATCH},
    )
    whole, first, phases = new_state(settings), new_state(settings), []
    train(whole, 8)
    for left in range(8, 0, -1):
        phases.append(first.phase.name)
        held = first.tensors()["discriminator_optimizer"]
        assert bool(held) == (first.steps > 6), "D's optimizer holds nothing before D's first step"
        again = resumed(first)
        train(again, left)
        assert_same(again, whole)
        train(first, 1)
    assert phases[::2] == phases[1::2]
    assert phases[0] == phases[4] == "prior"
    assert len({phases[0], phases[2], phases[6]}) == 3


def resumed(state: TrainState) -> TrainState:
    """Another state with this one's tensors and counts."""
    other = state.settings.model_copy(
        update={"run": state.settings.run.model_copy(update={"seed": 5})}
    )
    again = new_state(other)
    assert not torch.equal(weights_of(again), weights_of(state))
    again.settings = state.settings
    again.load_tensors(
        {
            name: {key: value.clone() for key, value in tensors.items()}
            for name, tensors in state.tensors().items()
        }
    )
    again.images_seen, again.steps = state.images_seen, state.steps
    return again


def assert_same(found: TrainState, wanted: TrainState) -> None:
    """Every tensor to the last bit, and the counts."""
    ours, theirs = found.tensors(), wanted.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensors in theirs.items():
        assert tensors.keys() == ours[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, ours[name][key]), f"{name}: {key}"
    assert (found.images_seen, found.steps) == (wanted.images_seen, wanted.steps)


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(1)
    first = weights_of(new_state(settings_of(run={"seed": 3})))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(weights_of(new_state(settings_of(run={"seed": 3}))), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(weights_of(new_state(settings_of(run={"seed": 4}))), first)


def damaged(kind: str, files: dict[str, dict[str, Tensor]]) -> None:
    weight = files["generator"]["output.weight"]
    if kind == "no ema":
        del files["ema"]
    elif kind == "another file":
        files["posterior"] = {}  # as a vae had before AALNet had a proposal
    elif kind == "a name is missing":
        del files["generator"]["output.weight"]
    elif kind == "another shape":
        files["generator"]["output.weight"] = weight[:, :1]
    elif kind == "another type":
        files["generator"]["output.weight"] = weight.double()
    elif kind == "an optimizer of more parameters":
        files["generator_optimizer"]["9999.exp_avg"] = weight
    elif kind == "an optimizer of another shape":
        files["generator_optimizer"]["0.exp_avg"] = weight[..., :2]


@pytest.mark.parametrize(
    "kind",
    [
        "no ema", "another file", "a name is missing", "another shape", "another type",
        "an optimizer of more parameters", "an optimizer of another shape",
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_make_is_refused(kind: str) -> None:
    state = new_state(settings_of())
    train(state, 1)
    files = {name: dict(tensors) for name, tensors in state.tensors().items()}
    damaged(kind, files)
    with pytest.raises(CheckpointError):
        new_state(settings_of()).load_tensors(files)

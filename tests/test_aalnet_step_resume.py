"""A resumed training goes on to the last bit; a checkpoint of another make is refused."""

import pytest
import torch
from torch import Tensor

from aalnet.errors import CheckpointError
from tests.support.tiny_steps import new_state, settings_of, train, weights_of


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("model", ["aalnet", "gan", "vae"])
def test_resume_is_exact(model: str, optimizer: str) -> None:
    settings = settings_of(model, optimizer={"name": optimizer, "lr": 1e-3})
    whole, first = new_state(settings), new_state(settings)
    train(whole, 4)
    train(first, 2)
    saved = {
        name: {key: value.clone() for key, value in tensors.items()}
        for name, tensors in first.tensors().items()
    }
    again = new_state(
        settings_of(model, optimizer={"name": optimizer, "lr": 1e-3}, run={"seed": 5})
    )
    again.settings = settings
    again.load_tensors(saved)
    again.images_seen, again.steps = first.images_seen, first.steps
    train(again, 2)

    wanted, found = whole.tensors(), again.tensors()
    assert wanted.keys() == found.keys()
    sides = {"generator", "posterior" if model == "vae" else "discriminator"}
    optimizers = {"generator_optimizer", "discriminator_optimizer"} - (
        {"discriminator_optimizer"} if model == "vae" else set()
    )
    assert wanted.keys() == {*sides, "ema", *optimizers}
    for name, tensors in wanted.items():
        assert tensors.keys() == found[name].keys()
        assert tensors
        for key, value in tensors.items():
            assert torch.equal(value, found[name][key]), f"{name}: {key}"
    assert (again.images_seen, again.steps) == (whole.images_seen, whole.steps) == (20, 4)
    assert not torch.equal(weights_of(first), weights_of(whole))


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
        files["posterior"] = {}
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

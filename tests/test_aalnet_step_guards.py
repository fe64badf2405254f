"""What is not finite, or does not fit together, stops the run and is named."""

import math

import pytest
import torch

from aalnet.batch import Batch
from aalnet.errors import DataError, NonFiniteError
from aalnet.step import train_step
from aalnet.update import require_finite
from tests.support.tiny_steps import OFF, global_batch, new_state, settings_of


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("aalnet", "separation"),
        ("gan", "separation"),
        ("vae-gan", "separation"),
        ("vae", "log_likelihood"),
    ],
)
def test_a_nan_in_the_batch_stops_the_run(model: str, first: str) -> None:
    state = new_state(settings_of(model))
    state.images_seen = 1_234_565
    batch = global_batch(0)
    batch.target[2, 0, 5, 5] = math.nan
    with pytest.raises(NonFiniteError, match=rf"^`{first}` is nan at 1,234,565 images") as caught:
        train_step(state, batch)
    assert "optimizer.lr" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state.images_seen == 1_234_565


@pytest.mark.parametrize(
    ("model", "network", "first"),
    [
        ("aalnet", "generator", "separation"),
        ("aalnet", "discriminator", "separation"),
        ("aalnet", "proposal", "log_likelihood"),
        ("vae", "generator", "log_likelihood"),
        ("vae", "proposal", "log_likelihood"),
    ],
)
def test_a_nan_in_a_parameter_stops_the_run(model: str, network: str, first: str) -> None:
    state = new_state(settings_of(model))
    next(state.networks[network].parameters()).data[0] = math.nan
    with pytest.raises(NonFiniteError, match=rf"^`{first}` is nan at 0 images"):
        train_step(state, global_batch(0))


def test_the_first_of_several_is_named_and_all_are_listed() -> None:
    measured = {"a": torch.tensor(1.0), "b": torch.tensor(-math.inf), "c": torch.tensor(math.nan)}
    with pytest.raises(NonFiniteError, match=r"^`b` is -inf at 7 images \(not finite: b, c\)"):
        require_finite(measured, 7)
    assert require_finite({"a": torch.tensor(0.5)}, 7) == {"a": 0.5}


def test_an_infinite_gradient_is_caught_by_its_norm() -> None:
    state = new_state(settings_of(objective=OFF))
    state.generator.output.register_full_backward_hook(
        lambda module, grads, outs: (grads[0] * math.inf,)
    )
    with pytest.raises(NonFiniteError, match=r"^`generator_norm` is (nan|inf)"):
        train_step(state, global_batch(0))


def test_a_batch_must_fit_together() -> None:
    good = global_batch(0)
    for broken in (
        {"condition": good.condition[:2]},
        {"target": good.target[..., :16]},
        {"label": good.label[:, None]},
        {"noise": good.noise[0]},
        {"global_images": 4},
    ):
        with pytest.raises(DataError, match="cannot hold"):
            Batch(**{**good.__dict__, **broken})

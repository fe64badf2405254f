"""The gradient of a squared gradient norm where it is known: by hand and by slow references."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from aalnet import mem
from aalnet.batch import ALONE, Batch
from aalnet.density import Density
from aalnet.penalties import OutputFunction, Parameters, squared_norm_gradient
from aalnet.phases import Phase
from aalnet.settings import ObjectiveSettings, parse_settings
from tests.support.slow_terms import (
    SCALE,
    TOLERANCE,
    Nested,
    Number,
    any_k,
    any_width,
    apart,
    both_types,
    call,
    flat,
    scalars,
    slow_separation,
    slow_summed_density,
    still,
    uniform,
)

Method = Literal["exact", "finite_difference"]
METHODS: tuple[Method, Method] = ("exact", "finite_difference")
both_methods = pytest.mark.parametrize("method", METHODS)

N = 2  # conditions


def vector_of(parameters: Parameters) -> Tensor:
    return torch.cat(list(parameters.values()))


def quadratic(o: Tensor) -> Tensor:
    return 3 * o[0] ** 2 + o[0] * o[1] + 2 * o[1] ** 2


@both_methods
def test_a_quadratic_by_hand(method: Method) -> None:
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    squared, (by_a, by_b) = squared_norm_gradient(
        OutputFunction(vector_of, quadratic),
        {"a": a, "b": b},
        method=method,
        step=1e-3,
        world=ALONE,
    )
    g = (6 * 0.5 - 1.5, 0.5 + 4 * -1.5)
    assert squared.item() == pytest.approx(g[0] ** 2 + g[1] ** 2)
    assert by_a.item() == pytest.approx(2 * (6 * g[0] + g[1]), rel=1e-9)
    assert by_b.item() == pytest.approx(2 * (g[0] + 4 * g[1]), rel=1e-9)
    assert a.grad is None
    assert a.tolist() == [0.5]


@both_methods
def test_both_parts_of_the_curvature_by_hand(method: Method) -> None:
    """f = sin(t)^2: g = sin(2 t), H = 2 cos(2 t), from the bend of sin and that of the square."""
    t = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    squared, (gradient,) = squared_norm_gradient(
        OutputFunction(lambda p: p["t"].sin(), lambda o: o.square().sum()),
        {"t": t},
        method=method,
        step=1e-4,
        world=ALONE,
    )
    assert squared.item() == pytest.approx(math.sin(1.4) ** 2)
    assert gradient.item() == pytest.approx(4 * math.cos(1.4) * math.sin(1.4), rel=1e-6)


@both_methods
def test_a_corner_of_the_value_beside_the_path_does_no_harm(method: Method) -> None:
    """The clamp at 1 lies between the two moved outputs, the point itself just inside."""
    t = torch.tensor([0.9999], dtype=torch.float64, requires_grad=True)
    _, (gradient,) = squared_norm_gradient(
        OutputFunction(lambda p: p["t"], lambda o: o.clamp(-1, 1).square().sum()),
        {"t": t},
        method=method,
        step=1e-2,
        world=ALONE,
    )
    assert gradient.item() == pytest.approx(8 * 0.9999)


@both_methods
def test_a_straight_value_leaves_the_curvature_of_the_output(method: Method) -> None:
    t = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    _, (gradient,) = squared_norm_gradient(
        OutputFunction(lambda p: p["t"].sin(), lambda o: 3 * o.sum()),
        {"t": t},
        method=method,
        step=1e-4,
        world=ALONE,
    )
    assert gradient.item() == pytest.approx(-18 * math.sin(0.7) * math.cos(0.7), rel=1e-6)


@both_methods
@pytest.mark.parametrize("kind", ["no slope", "no say"])
def test_a_flat_objective_gives_exact_zeros(kind: str, method: Method) -> None:
    parameters = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, requires_grad=True)}

    def output(given: Parameters) -> Tensor:
        return vector_of(given) if kind == "no slope" else 0 * given["a"]

    def value(o: Tensor) -> Tensor:
        return (0 * o).square().sum() if kind == "no slope" else o.cos().sum()

    squared, gradients = squared_norm_gradient(
        OutputFunction(output, value), parameters, method=method, step=1e-3, world=ALONE
    )
    assert squared.item() == 0
    assert [g.tolist() for g in gradients] == [[0, 0, 0], [0, 0]]


@both_methods
def test_a_parameter_without_a_say_gets_zeros(method: Method) -> None:
    parameters = {
        "a": torch.tensor([2.0], requires_grad=True),
        "idle": torch.ones(3, requires_grad=True),
    }
    _, (_, idle) = squared_norm_gradient(
        OutputFunction(lambda p: p["a"].sin(), lambda o: o.square().sum()),
        parameters,
        method=method,
        step=1e-3,
        world=ALONE,
    )
    assert idle.tolist() == [0, 0, 0]


# The two penalties, through mem, on toy networks of a few parameters.


class ToyGenerator(nn.Module):
    """mu = 1.2 * tanh(a * x + b * z_0 + c * z_1 * x); some samples leave [-1, 1]."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.9, dtype=dtype))
        self.bc = nn.Parameter(torch.tensor([0.7, -0.4], dtype=dtype))

    def forward(self, condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        z = noise[..., None, None, None]
        x = condition[:, None]
        return 1.2 * (self.a * x + self.bc[0] * z[:, :, 0] + self.bc[1] * z[:, :, 1] * x).tanh()


class ToyDiscriminator(nn.Module):
    """Patches are rows; logit = sum of 0.8 * x * y + 0.3 * y^2 over a row's pixels."""

    def forward(self, condition: Tensor, images: Tensor, label: Tensor) -> Tensor:
        if images.ndim == 4:
            return self.forward(condition, images[:, None], label)[:, 0]
        return (0.8 * condition[:, None] * images + 0.3 * images**2).sum(dim=(2, 4))


def slow_draw(theta: list[Number], x: Nested, noise: Nested) -> list[Nested]:
    a, b, c = theta
    return [
        [1.2 * call("tanh", a * p + b * z[0] + c * z[1] * p) for p in flat(x)] for z in noise
    ]  # fmt: skip


def slow_logits(x: Nested, y: Nested) -> list[Number]:
    logits = [0.8 * p * q + 0.3 * q * q for p, q in zip(flat(x), flat(y), strict=True)]
    return [logits[0] + logits[1], logits[2] + logits[3]]  # of 2 x 2 pixels


def toy_objective(k: int, width: float, **objective: object) -> ObjectiveSettings:
    values = {
        "K": k, "scale": SCALE, "width": width, "flatness": 0, "gamma": 0,
        "penalty_method": "exact", "penalty_interval": 3,
    }  # fmt: skip
    return parse_settings({"objective": values | objective}).objective


@both_types
@any_width
@any_k
@pytest.mark.parametrize("name", ["density_flatness", "response"])
def test_penalty_is_the_squared_gradient_norm(
    name: str, k: int, width: float, dtype: torch.dtype
) -> None:
    condition = uniform(N, 1, 2, 2, dtype=dtype, reach=1.0).detach()
    target = uniform(N, 1, 2, 2, dtype=dtype, seed=1, reach=1.0).detach()
    noise = uniform(N, 1 + k, 2, dtype=dtype, seed=2, reach=2.0).detach()
    weight = 0.37
    key = {"density_flatness": "flatness", "response": "gamma"}[name]
    generator = ToyGenerator(dtype)
    state: Any = SimpleNamespace(
        objective=toy_objective(k, width, **{key: weight}),
        density=Density(SCALE, width),
        generator=generator,
        discriminator=ToyDiscriminator(),
    )
    batch = Batch(condition, target, torch.zeros(N, dtype=torch.int64), noise, N)
    generator.a.grad = torch.tensor(0.25, dtype=dtype)  # what DDM left there stays
    phase = Phase(prior=name == "density_flatness", adversary=name == "response")
    measured = mem.add_penalty_gradients(state, batch, phase, ALONE)

    theta = [torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.7, -0.4)]
    theta = [v.to(dtype).double().requires_grad_() for v in theta]
    total: Number = 0.0
    for x, y, z in zip(*(still(scalars(v)[0]) for v in (condition, target, noise)), strict=True):
        samples = slow_draw(theta, x, z[1:])  # the first is the proposal's
        if name == "density_flatness":
            total = total + slow_summed_density(samples, width) / N
        else:
            fake = [slow_logits(x, sample) for sample in samples]
            total = total + slow_separation(fake, slow_logits(x, y)) / N
    if name == "density_flatness" and k == 1:
        norm, wanted = torch.zeros(()), [0.0, 0.0, 0.0]
    else:
        gradient = torch.autograd.grad(total, theta, create_graph=True)
        norm = sum(part * part for part in gradient)
        norm = norm / math.sqrt(k) if name == "density_flatness" else norm
        wanted = [3 * weight * part.item() for part in torch.autograd.grad(norm, theta)]
    assert measured.keys() == {name}
    assert apart(measured[name], [norm.item()]) <= TOLERANCE[dtype]
    found = torch.stack([generator.a.grad - 0.25, *generator.bc.grad])
    assert apart(found, wanted) <= 3 * TOLERANCE[dtype]  # the left 0.25 costs a digit

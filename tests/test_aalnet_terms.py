"""The terms against slow references of plain numbers and loops, and what each gradient does.

The references follow docs/objective.md, not the code: `math` on floats for values, autograd on
single float64 numbers for gradients.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aalnet import ddm, mem, terms
from aalnet.batch import ALONE, Batch
from aalnet.density import log_density, pairwise_distances
from aalnet.errors import ConfigError
from aalnet.networks import DataSpec
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState

SCALE = 0.3
SMOOTHING = 0.01  # eps of d
N, C, PX = 2, 2, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

Number = Any  # a float, or a Tensor of no dimensions
Nested = list[Any]

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
any_k = pytest.mark.parametrize("k", [1, 2, 4])


def uniform(*shape: int, dtype: torch.dtype, seed: int = 0, reach: float = 1.7) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + len(shape))
    values = (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1) * reach
    return values.to(dtype).requires_grad_()


def scalars(tensor: Tensor) -> tuple[Nested, list[Tensor]]:
    """The tensor as nested lists of float64 numbers, each a leaf of its own, and those leaves."""
    leaves = [value.clone().requires_grad_() for value in tensor.detach().double().flatten()]
    nested: Nested = list(leaves)
    for size in reversed(tensor.shape[1:]):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    return nested, leaves


def call(name: str, x: Number) -> Number:
    return getattr(x, name)() if isinstance(x, Tensor) else getattr(math, name)(x)


def still(nested: Any) -> Any:
    if isinstance(nested, list):
        return [still(part) for part in nested]
    return nested.item() if isinstance(nested, Tensor) else nested


def flat(nested: Any) -> list[Number]:
    return [x for part in nested for x in flat(part)] if isinstance(nested, list) else [nested]


def clamped(nested: Any) -> Any:
    if isinstance(nested, list):
        return [clamped(part) for part in nested]
    return nested if -1 <= nested <= 1 else math.copysign(1.0, still(nested))


def slow_distance(a: Nested, b: Nested) -> Number:
    pairs = list(zip(flat(a), flat(b), strict=True))
    roots = [call("sqrt", (p - q) * (p - q) + SMOOTHING**2) for p, q in pairs]
    return sum(roots) / len(roots) - SMOOTHING


def slow_density(point: Nested, centres: list[Nested]) -> Number:
    kernels = [call("exp", slow_distance(point, centre) / -SCALE) for centre in centres]
    return sum(kernels) / len(centres)


def slow_sigmoid(x: Number) -> Number:
    return 1 / (1 + call("exp", -x))


def slow_log_likelihood(samples: Nested, target: Nested) -> Number:
    return call("log", slow_density(target, samples))


def slow_entropy(samples: Nested) -> Number:
    if len(samples) == 1:
        return 0.0
    samples, total = clamped(samples), 0.0
    for i, own in enumerate(samples):
        others = [sample for j, sample in enumerate(samples) if j != i]
        total = total - call("log", slow_density(own, others))
    return total / len(samples)


def slow_summed_density(samples: Nested) -> Number:
    samples = clamped(samples)
    return sum(slow_density(own, samples) for own in samples)


def slow_reward(samples: Nested, fake: Nested, real: Number) -> Number:
    k = len(samples)
    if k == 1:
        return 0.0
    scores = [slow_sigmoid(still(score) - still(real)) for score in fake]
    samples, total = clamped(samples), 0.0
    for i in range(k):
        baseline = sum(scores[j] for j in range(k) if j != i) / (k - 1)
        total = total + (scores[i] - baseline) * call(
            "log", slow_density(still(samples[i]), samples)
        )
    return total / k


def slow_realism(fake: Nested, real: Number) -> Number:
    return sum(call("log", slow_sigmoid(score - real)) for score in fake) / len(fake)


def slow_separation(fake: Nested, real: Number) -> Number:
    return sum(call("log", slow_sigmoid(real - score)) for score in fake) / len(fake)


def apart(found: Tensor, wanted: Sequence[float]) -> float:
    """Relative difference of two vectors; absolute where the wanted one is 0."""
    expected = torch.tensor(wanted, dtype=torch.float64)
    difference = (found.detach().double().flatten() - expected).norm().item()
    return difference / (expected.norm().item() or 1.0)


def assert_as_slow(
    fast: Callable[..., Tensor],
    slow: Callable[..., Number],
    inputs: Sequence[Tensor],
    *,
    trained: Sequence[int] = (0,),
) -> None:
    """Values and gradients per condition; inputs not in `trained` must get no gradient."""
    tolerance = TOLERANCE[inputs[0].dtype]
    found = fast(*inputs)
    assert found.shape == (len(inputs[0]),)
    assert found.dtype == inputs[0].dtype
    values = [slow(*row) for row in zip(*(still(scalars(x)[0]) for x in inputs), strict=True)]
    assert apart(found, values) <= tolerance

    weights = [1.0, -0.6][: len(found)]
    gradients: list[Tensor | None] = [None] * len(inputs)
    if found.requires_grad:
        total = sum(w * value for w, value in zip(weights, found.unbind(), strict=True))
        gradients = list(torch.autograd.grad(total, list(inputs), allow_unused=True))
    nested, leaves = zip(*(scalars(x) for x in inputs), strict=True)
    rows = [slow(*row) for row in zip(*nested, strict=True)]
    slow_total = sum(w * row for w, row in zip(weights, rows, strict=True))
    for i, gradient in enumerate(gradients):
        wanted = [0.0] * len(leaves[i])
        if isinstance(slow_total, Tensor):
            wanted = [
                part.item()
                for part in torch.autograd.grad(
                    slow_total, leaves[i], retain_graph=True, allow_unused=True,
                    materialize_grads=True,
                )
            ]  # fmt: skip
        assert any(wanted) == (i in trained)
        got = torch.zeros_like(inputs[i]) if gradient is None else gradient
        assert apart(got, wanted) <= tolerance


@both_types
@any_k
def test_log_likelihood_is_the_mixture_of_raw_samples(k: int, dtype: torch.dtype) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    target = uniform(N, C, PX, PX, dtype=dtype, seed=1, reach=1.0)
    assert samples.abs().max() > 1.3

    def fast(samples: Tensor, target: Tensor) -> Tensor:
        return terms.log_likelihood(samples, target, SCALE)

    assert_as_slow(fast, slow_log_likelihood, [samples, target], trained=(0, 1))


@both_types
@any_k
@pytest.mark.parametrize(
    ("fast", "slow"),
    [(terms.entropy, slow_entropy), (terms.summed_density, slow_summed_density)],
    ids=["entropy", "summed_density"],
)
def test_pairwise_terms_see_clamped_samples(
    fast: Callable[[Tensor, float], Tensor],
    slow: Callable[[Nested], Number],
    k: int,
    dtype: torch.dtype,
) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    trained = (0,) if k > 1 else ()
    assert_as_slow(lambda x: fast(x, SCALE), slow, [samples], trained=trained)


def test_entropy_has_no_say_beyond_the_clamp() -> None:
    samples = uniform(N, 4, C, PX, PX, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(terms.entropy(samples, SCALE).sum(), samples)
    outside = samples.abs() > 1
    assert outside.any()
    assert not gradient[outside].any()
    assert gradient[~outside].all()


@both_types
@any_k
def test_reward_teaches_the_samples_and_not_the_judge(k: int, dtype: torch.dtype) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    fake, real = uniform(N, k, dtype=dtype, seed=2), uniform(N, dtype=dtype, seed=3)

    def fast(samples: Tensor, fake: Tensor, real: Tensor) -> Tensor:
        return terms.reward(samples, fake, real, SCALE)

    assert_as_slow(fast, slow_reward, [samples, fake, real], trained=(0,) if k > 1 else ())


@both_types
@any_k
@pytest.mark.parametrize(
    ("fast", "slow"),
    [(terms.realism, slow_realism), (terms.separation, slow_separation)],
    ids=["realism", "separation"],
)
def test_relativistic_terms(
    fast: Callable[[Tensor, Tensor], Tensor],
    slow: Callable[[Nested, Number], Number],
    k: int,
    dtype: torch.dtype,
) -> None:
    fake, real = uniform(N, k, dtype=dtype, reach=4), uniform(N, dtype=dtype, seed=1, reach=4)
    assert_as_slow(fast, slow, [fake, real], trained=(0, 1))


def test_relativistic_terms_stay_finite_at_extreme_logits() -> None:
    fake, real = torch.tensor([[500.0, -500.0]]), torch.tensor([0.0])
    assert terms.realism(fake, real).item() == -250.0
    assert terms.separation(fake, real).item() == -250.0


def test_far_samples_do_not_underflow() -> None:
    samples, target = torch.full((1, 2, 1, 2, 2), 90.0), torch.full((1, 1, 2, 2), -90.0)
    wanted = -(math.sqrt(180.0**2 + SMOOTHING**2) - SMOOTHING) / 0.1
    assert terms.log_likelihood(samples, target, 0.1).item() == pytest.approx(wanted, rel=1e-6)


@both_types
def test_offset_over_several_parameters(dtype: torch.dtype) -> None:
    shapes = [(2, 3), (4,), (1, 2, 2)]
    own = [uniform(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    other = [uniform(*shape, dtype=dtype, seed=9 + i) for i, shape in enumerate(shapes)]
    found = terms.offset(own, other)
    numbers = [still(scalars(x)[0]) for x in (*own, *other)]
    mine, theirs = flat(numbers[:3]), flat(numbers[3:])
    size = sum(b * b for b in theirs)
    assert found.shape == ()
    wanted = sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / size
    assert apart(found, [wanted]) <= TOLERANCE[dtype]
    gradients = torch.autograd.grad(found, [*own, *other], allow_unused=True)
    assert gradients[3:] == (None, None, None)
    gradient = torch.cat([part.flatten() for part in gradients[:3]])
    pull = [2 * (a - b) / size for a, b in zip(mine, theirs, strict=True)]
    assert apart(gradient, pull) <= TOLERANCE[dtype]


def test_offset_wants_encoders_of_one_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        terms.offset([torch.ones(2), torch.ones(2)], [torch.ones(2)])


@both_types
def test_image_gradient_sums_the_images_of_a_condition_and_trains_the_judge(
    dtype: torch.dtype,
) -> None:
    images = uniform(N, 3, C, PX, PX, dtype=dtype)
    weight = uniform(C, PX, PX, dtype=dtype, seed=1)
    found = terms.image_gradient((weight * images).tanh().sum(dim=(2, 3, 4)), images)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    numbers, leaves = scalars(weight)
    rows = []
    for condition in still(scalars(images)[0]):
        slopes = [
            w * (1 - call("tanh", w * y) ** 2)
            for image in condition
            for w, y in zip(flat(numbers), flat(image), strict=True)
        ]
        rows.append(sum(slope * slope for slope in slopes))
    assert found.shape == (N,)
    assert apart(found, still(rows)) <= TOLERANCE[dtype]
    wanted = [part.item() for part in torch.autograd.grad(sum(rows), leaves)]
    assert apart(gradient, wanted) <= TOLERANCE[dtype]


def normal_density(x: float, mean: float, variance: float) -> float:
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@both_types
def test_kl_divergence_is_the_integral_of_q_log_q_over_p(dtype: torch.dtype) -> None:
    mean = uniform(N, 3, dtype=dtype, reach=2)
    log_variance = uniform(N, 3, dtype=dtype, seed=1)
    found = terms.kl_divergence(mean, log_variance)
    wanted = []
    for means, logs in zip(mean.tolist(), log_variance.tolist(), strict=True):
        total = 0.0
        for m, log_v in zip(means, logs, strict=True):
            variance = math.exp(log_v)
            reach, count = 12 * math.sqrt(variance), 4000
            width = 2 * reach / count
            for x in (m - reach + i * width for i in range(count + 1)):
                q = normal_density(x, m, variance)
                log_ratio = 0.5 * (x * x - (x - m) ** 2 / variance - log_v)
                total += width * q * log_ratio
        wanted.append(total)
    assert apart(found, wanted) <= TOLERANCE[dtype]
    by_mean, by_log = torch.autograd.grad(found.sum(), [mean, log_variance])
    assert apart(by_mean, flat(mean.tolist())) <= TOLERANCE[dtype]
    halves = [(math.exp(x) - 1) / 2 for x in flat(log_variance.tolist())]
    assert apart(by_log, halves) <= TOLERANCE[dtype]


def test_weights_are_applied_by_name_and_every_term_needs_one() -> None:
    found = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
    assert terms.weighted_sum(found, {"b": -0.5, "a": 2.0, "c": 7.0}).item() == -9.0
    with pytest.raises(ConfigError, match="'a', 'b'"):
        terms.weighted_sum(found, {"a": 1.0})


def test_accuracy_counts_samples_below_the_target() -> None:
    fake, real = torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([1.0])
    assert terms.accuracy(fake, real).tolist() == [0.5]


def test_accuracy_on_each_side_is_by_the_sign_of_the_logit() -> None:
    assert terms.real_accuracy(torch.tensor([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.0]
    assert terms.fake_accuracy(torch.tensor([[-1.0, 2.0], [-3.0, -4.0]])).tolist() == [0.5, 1.0]


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
    """logit = sum of 0.8 * x * y + 0.3 * y^2 over the pixels."""

    def forward(self, condition: Tensor, images: Tensor, label: Tensor) -> Tensor:
        if images.ndim == 4:
            return self.forward(condition, images[:, None], label)[:, 0]
        return (0.8 * condition[:, None] * images + 0.3 * images**2).sum(dim=(2, 3, 4))


def slow_draw(theta: list[Number], x: Nested, noise: Nested) -> list[Nested]:
    a, b, c = theta
    return [
        [1.2 * call("tanh", a * p + b * z[0] + c * z[1] * p) for p in flat(x)] for z in noise
    ]  # fmt: skip


def slow_logit(x: Nested, y: Nested) -> Number:
    return sum(0.8 * p * q + 0.3 * q * q for p, q in zip(flat(x), flat(y), strict=True))


def toy_settings(k: int, **objective: object) -> Settings:
    values = {"K": k, "scale": SCALE, "penalty_method": "exact", "penalty_interval": 3}
    return parse_settings({"objective": values | {"flatness": 0, "gamma": 0} | objective})


@both_types
@any_k
@pytest.mark.parametrize("name", ["density_flatness", "response"])
def test_penalty_is_the_squared_gradient_norm(name: str, k: int, dtype: torch.dtype) -> None:
    condition = uniform(N, 1, 2, 2, dtype=dtype, reach=1.0).detach()
    target = uniform(N, 1, 2, 2, dtype=dtype, seed=1, reach=1.0).detach()
    noise = uniform(N, k, 2, dtype=dtype, seed=2, reach=2.0).detach()
    weight = 0.37
    key = {"density_flatness": "flatness", "response": "gamma"}[name]
    generator = ToyGenerator(dtype)
    state: Any = SimpleNamespace(
        settings=toy_settings(k, **{key: weight}),
        generator=generator,
        discriminator=ToyDiscriminator(),
    )
    batch = Batch(condition, target, torch.zeros(N, dtype=torch.int64), noise, N)
    generator.a.grad = torch.tensor(0.25, dtype=dtype)  # what DDM left there stays
    measured = mem.add_penalty_gradients(state, batch, ALONE)

    theta = [torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.7, -0.4)]
    theta = [v.to(dtype).double().requires_grad_() for v in theta]
    total: Number = 0.0
    for x, y, z in zip(*(still(scalars(v)[0]) for v in (condition, target, noise)), strict=True):
        samples = slow_draw(theta, x, z)
        if name == "density_flatness":
            total = total + slow_summed_density(samples) / N
        else:
            fake = [slow_logit(x, sample) for sample in samples]
            total = total + slow_separation(fake, slow_logit(x, y)) / N
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


# What each gradient does.

TINY = {"widths": [4, 8], "noise_size": 4, "embedding_size": 8}
SPEC = DataSpec(labels=("a", "b"), condition_channels=1, target_channels=1)


def tiny_state(**objective: object) -> TrainState:
    off = {"lambda": 0.0, "eta": 0.0, "beta": 0.0, "gamma": 0.0, "flatness": 0.0, "r1": 0.0}
    values = {"network": TINY, "objective": off | objective}
    return TrainState(parse_settings(values), SPEC, torch.device("cpu"))


def tiny_batch(k: int = 4) -> Batch:
    """Grey shapes well inside [-1, 1], where no clamp acts."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, k, 4, generator=generator)
    coarse = 0.4 * torch.rand(2, 3, 1, 8, 8, generator=generator) - 0.2
    condition, target = (nn.functional.interpolate(x, scale_factor=4.0) for x in coarse)
    return Batch(condition, target, torch.tensor([0, 1, 0]), noise, 3)


def draw(state: TrainState, batch: Batch) -> Tensor:
    samples: Tensor = state.generator(batch.condition, batch.label, batch.noise)
    return samples


def spread(samples: Tensor) -> float:
    return pairwise_distances(samples.detach(), samples.detach()).mean().item()


def ascend(value: Tensor, parameters: Sequence[Tensor], rate: float) -> None:
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter += rate * gradient


def test_entropy_drives_samples_apart_and_no_further_than_the_clamp() -> None:
    samples = uniform(1, 4, 1, 4, 4, dtype=torch.float32, reach=0.1)
    before = [spread(samples)]
    for _ in range(40):
        ascend(terms.entropy(samples, SCALE).sum(), [samples], 0.2)
        before.append(spread(samples))
    assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(before))
    assert before[-1] > 10 * before[0]
    ends = samples.detach().clone()
    for _ in range(300):
        ascend(terms.entropy(samples, SCALE).sum(), [samples], 0.2)
    assert ends.abs().max() < 1.5
    assert samples.abs().max() < 1.5


def test_entropy_drives_the_generators_samples_apart() -> None:
    state, batch = tiny_state(), tiny_batch()
    before = spread(draw(state, batch))
    for _ in range(10):
        value = terms.entropy(draw(state, batch), SCALE).mean()
        ascend(value, list(state.generator.parameters()), 0.02)
    assert spread(draw(state, batch)) > 1.5 * before


def test_reward_makes_better_scored_samples_likelier_than_worse_ones() -> None:
    samples = uniform(1, 4, 1, 4, 4, dtype=torch.float64, reach=0.5)
    points = samples.detach().clone()
    fake, real = torch.tensor([[3.0, -1.0, 0.5, -3.0]]), torch.tensor([0.0])

    def advantage_of_the_best() -> float:
        log_p = log_density(pairwise_distances(points, samples.detach()), SCALE)[0]
        return (log_p[0] - log_p[3]).item()

    before = advantage_of_the_best()
    for _ in range(5):
        ascend(terms.reward(samples, fake, real, SCALE).sum(), [samples], 1.0)
    assert advantage_of_the_best() > before + 0.05


def test_reward_of_equal_scores_is_no_reward() -> None:
    samples = uniform(1, 3, 1, 4, 4, dtype=torch.float64)
    value = terms.reward(samples, torch.full((1, 3), 0.7), torch.zeros(1), SCALE)
    (gradient,) = torch.autograd.grad(value.sum(), samples)
    assert gradient.abs().max() < 1e-7


def test_realism_raises_the_judges_score_of_samples() -> None:
    state, batch = tiny_state(**{"lambda": 1.0}), tiny_batch()
    judged = []
    for _ in range(10):
        fake, real = ddm.judge(state, batch, draw(state, batch))
        judged.append((fake - real[:, None]).mean().item())
        ascend(terms.realism(fake, real).mean(), list(state.generator.parameters()), 0.05)
    assert all(later > earlier for earlier, later in itertools.pairwise(judged))


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize(("name", "key"), [("density_flatness", "flatness"), ("response", "gamma")])
def test_a_penalty_alone_shrinks_the_norm_it_names(name: str, key: str, method: str) -> None:
    state = tiny_state(**{key: 1.0, "penalty_method": method, "penalty_interval": 1})
    batch = tiny_batch()
    norms = []
    for _ in range(6):
        measured = mem.add_penalty_gradients(state, batch, ALONE)
        assert measured.keys() == {name}
        norms.append(measured[name].item())
        parameters = list(state.generator.parameters())
        size = torch.stack([p.grad.square().sum() for p in parameters]).sum()
        with torch.no_grad():  # a twentieth of the way to a norm of 0, along the gradient
            for p in parameters:
                p -= 0.05 * norms[-1] / size * p.grad
                p.grad = None
    assert all(later < earlier for earlier, later in itertools.pairwise(norms))
    assert norms[-1] < 0.9 * norms[0]


def test_offset_pulls_both_encoders_together() -> None:
    state, batch = tiny_state(eta=0.5, offset_share=1.0), tiny_batch()
    objective = state.settings.objective
    samples = draw(state, batch)
    fake, real = ddm.judge(state, batch, samples)
    sides = {
        "generator": (
            ddm.generator_terms(state, batch, samples, fake, real)["offset"],
            ddm.generator_weights(objective)["offset"],
        ),
        "discriminator": (
            ddm.discriminator_terms(state, batch, samples.detach())["discriminator_offset"],
            ddm.discriminator_weights(objective)["discriminator_offset"],
        ),
    }
    for side, (value, weight) in sides.items():
        assert value.shape == (3,)
        assert weight == -0.5
        own = state.networks[side]
        (other,) = (net for name, net in state.networks.items() if name != side)
        names = [name for name, _ in own.named_parameters()]
        gradients = torch.autograd.grad(
            weight * value.mean(),
            [*own.parameters(), *other.parameters()],
            allow_unused=True,
        )
        assert all(gradient is None for gradient in gradients[len(names) :])
        for name, gradient in zip(names, gradients[: len(names)], strict=True):
            assert (gradient is not None) == name.startswith("encoder.")
        apart_before = encoders_apart(state)
        with torch.no_grad():
            for parameter, gradient in zip(own.parameters(), gradients, strict=False):
                if gradient is not None:
                    parameter += 10.0 * gradient
        assert encoders_apart(state) < apart_before


def encoders_apart(state: TrainState) -> float:
    pairs = zip(
        state.generator.encoder.parameters(), state.discriminator.encoder.parameters(), strict=True
    )
    return sum((a - b).square().sum().item() for a, b in pairs)

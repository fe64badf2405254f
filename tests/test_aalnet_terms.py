"""The terms' values and gradients against slow references."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from aalnet import terms
from aalnet.errors import ConfigError
from tests.support.slow_terms import (
    SCALE,
    SMOOTHING,
    TOLERANCE,
    Nested,
    Number,
    any_k,
    apart,
    both_types,
    call,
    flat,
    scalars,
    slow_entropy,
    slow_log_likelihood,
    slow_realism,
    slow_reward,
    slow_separation,
    slow_summed_density,
    still,
    uniform,
)

N, C, PX = 2, 2, 3


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

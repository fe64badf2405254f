"""The terms' values and gradients against slow references."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from aalnet import terms
from aalnet.density import Density
from aalnet.errors import ConfigError
from tests.support.slow_terms import (
    SCALE,
    SMOOTHING,
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
    slow_code_recovery,
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
PATCHES = 3


def assert_as_slow(
    fast: Callable[..., Tensor],
    slow: Callable[..., Number],
    inputs: Sequence[Tensor],
    *,
    trained: Sequence[int] = (0,),
    width: float = 1.0,
) -> None:
    """Values and gradients per condition; inputs not in `trained` must get no gradient.

    The logarithm of wide kernels is a small number times their width, which costs its value a
    digit and its gradient none.
    """
    tolerance = TOLERANCE[inputs[0].dtype]
    found = fast(*inputs)
    assert found.shape == (len(inputs[0]),)
    assert found.dtype == inputs[0].dtype
    values = [slow(*row) for row in zip(*(still(scalars(x)[0]) for x in inputs), strict=True)]
    assert apart(found, values) <= tolerance * (10 if width > 1 else 1)

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
@any_width
@any_k
def test_log_likelihood_is_the_mixture_of_raw_samples(
    k: int, width: float, dtype: torch.dtype
) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    target = uniform(N, C, PX, PX, dtype=dtype, seed=1, reach=1.0)
    assert samples.abs().max() > 1.3

    def fast(samples: Tensor, target: Tensor) -> Tensor:
        return terms.log_likelihood(samples, target, Density(SCALE, width))

    slow = partial(slow_log_likelihood, width=width)
    assert_as_slow(fast, slow, [samples, target], trained=(0, 1), width=width)


@both_types
@any_width
@any_k
@pytest.mark.parametrize(
    ("fast", "slow"),
    [(terms.entropy, slow_entropy), (terms.summed_density, slow_summed_density)],
    ids=["entropy", "summed_density"],
)
def test_pairwise_terms_see_clamped_samples(
    fast: Callable[[Tensor, Density], Tensor],
    slow: Callable[..., Number],
    k: int,
    width: float,
    dtype: torch.dtype,
) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    density, trained = Density(SCALE, width), (0,) if k > 1 else ()
    slow_one = partial(slow, width=width)
    assert_as_slow(lambda x: fast(x, density), slow_one, [samples], trained=trained, width=width)


def test_entropy_has_no_say_beyond_the_clamp() -> None:
    samples = uniform(N, 4, C, PX, PX, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(terms.entropy(samples, Density(SCALE)).sum(), samples)
    outside = samples.abs() > 1
    assert outside.any()
    assert not gradient[outside].any()
    assert gradient[~outside].all()


@both_types
@any_width
@any_k
def test_reward_teaches_the_samples_and_not_the_judge(
    k: int, width: float, dtype: torch.dtype
) -> None:
    samples = uniform(N, k, C, PX, PX, dtype=dtype)
    fake, real = logits_of(k, dtype, reach=1.7)

    def fast(samples: Tensor, fake: Tensor, real: Tensor) -> Tensor:
        return terms.reward(samples, fake, real, Density(SCALE, width))

    slow = partial(slow_reward, width=width)
    trained = (0,) if k > 1 else ()
    assert_as_slow(fast, slow, [samples, fake, real], trained=trained, width=width)


def logits_of(k: int, dtype: torch.dtype, reach: float) -> tuple[Tensor, Tensor]:
    """D's logits of each patch of k samples [N, k, P], and of the target's [N, P]."""
    fake = uniform(N, k, PATCHES, dtype=dtype, seed=2, reach=reach)
    return fake, uniform(N, PATCHES, dtype=dtype, seed=3, reach=reach)


@both_types
@any_k
@pytest.mark.parametrize(
    ("fast", "slow"),
    [(terms.realism, slow_realism), (terms.separation, slow_separation)],
    ids=["realism", "separation"],
)
def test_relativistic_terms(
    fast: Callable[[Tensor, Tensor], Tensor],
    slow: Callable[[Nested, Nested], Number],
    k: int,
    dtype: torch.dtype,
) -> None:
    assert_as_slow(fast, slow, logits_of(k, dtype, reach=4.0), trained=(0, 1))


@both_types
def test_code_recovery_is_the_mean_absolute_difference(dtype: torch.dtype) -> None:
    code, read = uniform(N, 4, dtype=dtype), uniform(N, 4, dtype=dtype, seed=1)
    assert_as_slow(terms.code_recovery, slow_code_recovery, [code, read], trained=(0, 1))


def test_relativistic_terms_stay_finite_at_extreme_logits() -> None:
    fake, real = torch.tensor([[[500.0], [-500.0]]]), torch.tensor([[0.0]])
    assert terms.realism(fake, real).item() == -250.0
    assert terms.separation(fake, real).item() == -250.0


def test_far_samples_do_not_underflow() -> None:
    samples, target = torch.full((1, 2, 1, 2, 2), 90.0), torch.full((1, 1, 2, 2), -90.0)
    wanted = -(math.sqrt(180.0**2 + SMOOTHING**2) - SMOOTHING) / 0.1
    for width in (1.0, 100.0):
        found = terms.log_likelihood(samples, target, Density(0.1, width))
        assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_wide_kernels_with_half_the_entropy_are_the_energy_score() -> None:
    """mean_k d(y, mu_k) - 1/2 mean_{j != k} d(mu_j, mu_k), as docs/objective.md promises."""
    samples = uniform(N, 4, C, PX, PX, dtype=torch.float64, reach=1.0)
    target = uniform(N, C, PX, PX, dtype=torch.float64, seed=1, reach=1.0)
    wide = Density(SCALE, 1e6)
    fair = terms.log_likelihood(samples, target, wide) + 0.5 * terms.entropy(samples, wide)
    to_target = wide.distance(samples, target[:, None]).mean(dim=1)
    among = wide.distance(samples[:, :, None], samples[:, None]).sum(dim=(1, 2)) / (4 * 3)
    torch.testing.assert_close(fair, -(to_target - 0.5 * among) / SCALE, rtol=1e-5, atol=0)


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
    score = (weight * images).tanh().sum(dim=(2, 3, 4))
    logits = torch.stack([0.25 * score, 1.75 * score], dim=2)  # patches; `score` is their mean
    found = terms.image_gradient(logits, images)
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


def test_weights_are_applied_by_name_and_every_term_needs_one() -> None:
    found = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
    assert terms.weighted_sum(found, {"b": -0.5, "a": 2.0, "c": 7.0}).item() == -9.0
    with pytest.raises(ConfigError, match="'a', 'b'"):
        terms.weighted_sum(found, {"a": 1.0})


def test_accuracy_counts_patches_of_samples_below_those_of_the_target() -> None:
    fake, real = torch.tensor([[[0.0, 2.0], [1.0, -1.0], [9.0, 9.0]]]), torch.tensor([[1.0, 3.0]])
    assert terms.accuracy(fake, real).tolist() == [0.5]


def test_accuracy_on_each_side_is_by_the_sign_of_the_logit() -> None:
    real = torch.tensor([[2.0, 1.0], [-1.0, 3.0], [0.0, 0.0]])
    assert terms.real_accuracy(real).tolist() == [1.0, 0.5, 0.0]
    fake = torch.tensor([[[-1.0, 2.0], [-2.0, 0.0]], [[-3.0, -4.0], [-5.0, -6.0]]])
    assert terms.fake_accuracy(fake).tolist() == [0.5, 1.0]

"""Diagonal Gaussians over codes: what is drawn from them, and how far apart two of them are."""

import math

import pytest
import torch

from aalnet.gaussian import Gaussian
from tests.support.slow_terms import TOLERANCE, apart, both_types, uniform

N, K, Z = 2, 3, 4


def gaussian(seed: int, dtype: torch.dtype) -> Gaussian:
    """Means of [-2, 2] and standard deviations of [0.3, 3.3], each of its own."""
    mean = uniform(N, Z, dtype=dtype, seed=seed, reach=2.0)
    return Gaussian(mean, uniform(N, Z, dtype=dtype, seed=seed + 100, reach=1.2))


def standard(dtype: torch.dtype) -> Gaussian:
    return Gaussian(*torch.zeros(2, N, Z, dtype=dtype))


@both_types
def test_codes_are_the_noise_moved_and_stretched(dtype: torch.dtype) -> None:
    q, noise = gaussian(0, dtype), uniform(N, K, Z, dtype=dtype, seed=2, reach=3.0)
    codes = q.codes(noise)
    assert codes.shape == (N, K, Z)
    wanted = [
        q.mean[i, z].item() + math.exp(q.log_std[i, z].item()) * noise[i, k, z].item()
        for i in range(N) for k in range(K) for z in range(Z)
    ]  # fmt: skip
    assert apart(codes, wanted) <= TOLERANCE[dtype]
    assert torch.equal(standard(dtype).codes(noise), noise)


def test_codes_have_the_moments_that_they_are_drawn_by() -> None:
    q = gaussian(3, torch.float64)
    noise = torch.randn(
        1, 40_000, Z, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    codes = q.codes(noise.expand(N, -1, -1)).detach()
    torch.testing.assert_close(codes.mean(dim=1), q.mean.detach(), rtol=0, atol=0.06)
    torch.testing.assert_close(codes.std(dim=1), q.log_std.detach().exp(), rtol=0.02, atol=0)


def integral(m: float, log_s: float, n: float, log_t: float) -> float:
    """Of q log(q / p) over the line, by the rectangle rule; q and p by mean and log std."""

    def log_of(x: float, mean: float, log_std: float) -> float:
        return -0.5 * ((x - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)

    reach, count = 12 * math.exp(log_s), 2000
    width, total = 2 * reach / count, 0.0
    for x in (m - reach + i * width for i in range(count + 1)):
        log_q = log_of(x, m, log_s)
        total += width * math.exp(log_q) * (log_q - log_of(x, n, log_t))
    return total


@both_types
@pytest.mark.parametrize("other", ["standard", "another"])
def test_kl_is_the_integral_of_q_log_q_over_p(other: str, dtype: torch.dtype) -> None:
    q, p = gaussian(0, dtype), standard(dtype) if other == "standard" else gaussian(5, dtype)
    moments = [part.tolist() for part in (q.mean, q.log_std, p.mean, p.log_std)]
    wanted = [
        sum(integral(*numbers) for numbers in zip(*rows, strict=True))
        for rows in zip(*moments, strict=True)
    ]
    found = q.kl(p)
    assert found.shape == (N,)
    assert apart(found, wanted) <= TOLERANCE[dtype]


def test_kl_teaches_both_and_is_0_of_the_same() -> None:
    q, p = gaussian(0, torch.float64), gaussian(5, torch.float64)
    leaves = (q.mean, q.log_std, p.mean, p.log_std)
    assert torch.autograd.gradcheck(lambda a, b, c, d: Gaussian(a, b).kl(Gaussian(c, d)), leaves)
    assert all(part.abs().min() > 0 for part in torch.autograd.grad(q.kl(p).sum(), leaves))
    assert q.kl(q).abs().max() < 1e-12
    assert (q.kl(p) - p.kl(q)).abs().min() > 0.1, "which of the two is the first matters"

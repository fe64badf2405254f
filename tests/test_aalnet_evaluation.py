"""Whole evaluations: their figures by hand, what moves them and what does not, what is refused."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from aalnet.errors import AalnetError, DataError, NonFiniteError, UserError
from aalnet.evaluation import Draw, Evaluator

IMAGES = 7
SIZE_PX = 8
NOISE_SIZE = 5
CONDITION_KEYS = {"l1_condition", "ssim_condition", "psnr_condition"}
KEYS = {"images", "k", "l1", "ssim", "psnr", "best_of_k_l1", "diversity"} | CONDITION_KEYS


class Moments(nn.Module):
    """Channel means and deviations [N, 6]; counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        rgb = images.expand(-1, 3, -1, -1)
        return torch.cat([rgb.mean(dim=(2, 3)), rgb.std(dim=(2, 3))], dim=1)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def evaluator(features: nn.Module | None = None, batch_images: int = 64) -> Evaluator:
    return Evaluator(
        uniform(IMAGES, 1, SIZE_PX, SIZE_PX, seed=0),
        torch.arange(IMAGES) % 3,
        uniform(IMAGES, 3, SIZE_PX, SIZE_PX, seed=1),
        noise_size=NOISE_SIZE,
        features=None if features is None else ("kid_moments", features),
        batch_images=batch_images,
    )


def noisy(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
    """The condition moved by the noise and the label, at times beyond [-1, 1]."""
    shift = 0.5 * noise[:, :, :3, None, None] + 0.1 * label[:, None, None, None, None]
    return condition[:, None] + shift


def constant(samples: Tensor) -> Draw:
    """A generator that has learnt `samples` [N, k, C, H, W] by heart; needs one batch of all."""
    return lambda condition, label, noise: samples


# Figures


def test_keys() -> None:
    assert set(evaluator().evaluate(noisy, k=2, seed=0)) == KEYS
    with_kid = evaluator(Moments()).evaluate(noisy, k=2, seed=0)
    assert set(with_kid) == KEYS | {"kid_moments", "kid_moments_condition"}
    assert with_kid["images"] == IMAGES
    assert with_kid["k"] == 2
    assert all(type(value) in (int, float) for value in with_kid.values())


def test_figures_by_hand() -> None:
    k = 3
    pairs = evaluator()
    samples = uniform(IMAGES, k, 3, SIZE_PX, SIZE_PX, seed=2)
    figures = pairs.evaluate(constant(samples), k=k, seed=0)
    l1 = [
        [float((s - y).abs().mean()) for s in of]
        for of, y in zip(samples, pairs.targets, strict=True)
    ]
    assert figures["l1"] == pytest.approx(sum(row[0] for row in l1) / IMAGES, rel=1e-6)
    assert figures["best_of_k_l1"] == pytest.approx(sum(map(min, l1)) / IMAGES, rel=1e-6)
    differences = [
        float((a - b).abs().mean()) for of in samples for a, b in itertools.combinations(of, 2)
    ]
    assert figures["diversity"] == pytest.approx(sum(differences) / len(differences), rel=1e-6)
    squared_error = (samples[:, 0] - pairs.targets).double().square().mean()
    assert figures["psnr"] == pytest.approx(10 * math.log10(4 / squared_error), rel=1e-6)
    returned = (pairs.conditions - pairs.targets).double()
    assert figures["l1_condition"] == pytest.approx(float(returned.abs().mean()), rel=1e-6)
    psnr = 10 * math.log10(4 / returned.square().mean())
    assert figures["psnr_condition"] == pytest.approx(psnr, rel=1e-6)


def test_returning_the_condition_scores_as_the_condition() -> None:
    def same(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        return condition[:, None].expand(-1, noise.shape[1], 3, -1, -1)

    figures = evaluator(Moments()).evaluate(same, k=3, seed=0)
    for name in ("kid_moments", "l1", "ssim", "psnr"):
        assert figures[name] == pytest.approx(figures[f"{name}_condition"], rel=1e-9)
    assert figures["best_of_k_l1"] == pytest.approx(figures["l1"])
    assert figures["diversity"] == 0.0


def test_perfect_samples() -> None:
    pairs = evaluator(Moments())
    figures = pairs.evaluate(constant(pairs.targets[:, None]), k=1, seed=0)
    assert figures["l1"] == figures["best_of_k_l1"] == figures["diversity"] == 0.0
    assert figures["ssim"] == pytest.approx(1.0)
    assert figures["kid_moments"] < figures["kid_moments_condition"]


def test_best_of_k_is_at_most_one_sample_and_falls_with_k() -> None:
    pairs = evaluator()
    one, four, eight = (pairs.evaluate(noisy, k=k, seed=3) for k in (1, 4, 8))
    assert one["best_of_k_l1"] == pytest.approx(one["l1"])
    assert one["diversity"] == 0.0
    assert eight["best_of_k_l1"] < four["best_of_k_l1"] < four["l1"]
    # More samples keep the first one, so figures of one sample do not move with k.
    assert one["l1"] == pytest.approx(four["l1"], rel=1e-9)


def test_batch_size_changes_nothing() -> None:
    whole = evaluator(Moments()).evaluate(noisy, k=3, seed=5)
    for batch_images in (1, 3):
        parts = evaluator(Moments(), batch_images).evaluate(noisy, k=3, seed=5)
        assert parts == pytest.approx(whole, rel=1e-5)


def test_seed_decides_and_the_global_generator_is_left_alone() -> None:
    pairs = evaluator(Moments())
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = pairs.evaluate(noisy, k=2, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12)
    assert pairs.evaluate(noisy, k=2, seed=5) == first
    assert pairs.evaluate(noisy, k=2, seed=6)["l1"] != first["l1"]


def test_features_of_targets_and_conditions_are_computed_once() -> None:
    moments = Moments()
    pairs = evaluator(moments)
    pairs.evaluate(noisy, k=2, seed=0)
    assert moments.seen == 3 * IMAGES  # targets, conditions, samples
    pairs.evaluate(noisy, k=2, seed=0)
    assert moments.seen == 4 * IMAGES


def test_samples_are_clamped_and_need_no_gradient() -> None:
    pairs = evaluator()
    weight = torch.ones((), requires_grad=True)
    far = 9 * torch.ones(IMAGES, 2, 3, SIZE_PX, SIZE_PX)
    figures = pairs.evaluate(lambda *_: far * weight, k=2, seed=0)
    assert figures["l1"] == pytest.approx(float((1 - pairs.targets).mean()), rel=1e-6)


# Errors


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sample_that_is_not_finite_names_its_image(value: float) -> None:
    def draw(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        samples = noisy(condition, label, noise)
        samples[label == 2, 1, 0, 0, 0] = value  # label 2 is image 2 first, then image 5
        return samples

    with pytest.raises(NonFiniteError, match="image 2 "):
        evaluator(batch_images=2).evaluate(draw, k=2, seed=0)


def test_features_that_are_not_finite() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), math.nan)

    with pytest.raises(NonFiniteError, match="kid_moments"):
        evaluator(Broken()).evaluate(noisy, k=1, seed=0)


def test_samples_of_a_wrong_shape() -> None:
    with pytest.raises(AalnetError, match=r"\(7, 2, 3, 8, 8\), got \(7, 2, 1, 8, 8\)"):
        evaluator().evaluate(lambda c, _, z: c[:, None].expand(-1, 2, -1, -1, -1), k=2, seed=0)


def test_k_below_one() -> None:
    with pytest.raises(UserError, match="k must be >= 1, got 0"):
        evaluator().evaluate(noisy, k=0, seed=0)


def test_pairs_that_do_not_fit() -> None:
    images, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    cases: list[tuple[Tensor, Tensor, Tensor]] = [
        (images[:1], labels, images),
        (images, labels[:1], images),
        (images, labels, images[..., :4]),
        (images[:0], labels[:0], images[:0]),
        (images[..., :4], labels, images[..., :4]),
    ]
    for conditions, some_labels, targets in cases:
        with pytest.raises(DataError, match="evaluation needs"):
            Evaluator(conditions, some_labels, targets, noise_size=1, features=None)


def test_one_image_has_no_kernel_distance() -> None:
    one = (torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match="kid_moments needs two images or more"):
        Evaluator(*one, noise_size=NOISE_SIZE, features=("kid_moments", Moments()))
    figures = Evaluator(*one, noise_size=NOISE_SIZE, features=None).evaluate(noisy, k=2, seed=0)
    assert figures["images"] == 1
    assert figures["ssim_condition"] == pytest.approx(1.0)

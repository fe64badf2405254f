"""Whole evaluations: their figures by hand, what moves them and what does not, what is refused."""

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn

from aalnet.errors import AalnetError, DataError, NonFiniteError, UserError
from aalnet.evaluation import Draw, Evaluator

IMAGES = 7
SIZE_PX = 8
NOISE_SIZE = 5
BY_IMAGE = {"pixel_energy_score", "best_of_k_l1", "diversity"}  # with a standard error
FLOORS = {"pixel_energy_score", "l1", "ssim", "psnr"}
KEYS = {"images", "k", "l1", "ssim", "psnr"} | BY_IMAGE
KID = "kid_unpaired_moments"
IN_FEATURES = {"energy_score", KID, "feature_diversity", "label_following"}


def with_parts(names: set[str], errors: set[str], floors: set[str]) -> set[str]:
    return names | {f"{name}_se" for name in errors} | {f"{name}_condition" for name in floors}


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
    labels = torch.arange(IMAGES) % 3
    tone = 0.4 * labels[:, None, None, None]
    return Evaluator(
        uniform(IMAGES, 1, SIZE_PX, SIZE_PX, seed=0),
        labels,
        0.2 * uniform(IMAGES, 3, SIZE_PX, SIZE_PX, seed=1) + tone,
        noise_size=NOISE_SIZE,
        features=None if features is None else ("kid_unpaired_moments", features),
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
    assert set(evaluator().evaluate(noisy, k=2, seed=0)) == with_parts(KEYS, BY_IMAGE, FLOORS)
    whole = evaluator(Moments()).evaluate(noisy, k=2, seed=0)
    assert set(whole) == with_parts(
        KEYS | IN_FEATURES, BY_IMAGE | IN_FEATURES, FLOORS | {"energy_score", KID}
    )
    assert (whole["images"], whole["k"]) == (IMAGES, 2)
    assert all(type(value) in (int, float) for value in whole.values())


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
    for name in (KID, "energy_score", "pixel_energy_score", "l1", "ssim", "psnr"):
        assert figures[name] == pytest.approx(figures[f"{name}_condition"], rel=1e-6)
    assert figures["best_of_k_l1"] == pytest.approx(figures["l1"])
    assert figures["diversity"] == figures["feature_diversity"] == 0.0


def test_perfect_samples() -> None:
    pairs = evaluator(Moments())
    figures = pairs.evaluate(constant(pairs.targets[:, None]), k=1, seed=0)
    assert figures["l1"] == figures["best_of_k_l1"] == figures["diversity"] == 0.0
    assert figures["ssim"] == pytest.approx(1.0)
    assert figures["energy_score"] == figures["pixel_energy_score"] == 0.0
    assert figures[KID] < figures[f"{KID}_condition"]


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
    each = 3 * IMAGES  # two samples, and the first with another label
    assert moments.seen == 2 * IMAGES + each  # targets and conditions
    pairs.evaluate(noisy, k=2, seed=0)
    assert moments.seen == 2 * IMAGES + 2 * each


def test_samples_are_clamped_and_need_no_gradient() -> None:
    pairs = evaluator()
    weight = torch.ones((), requires_grad=True)
    far = 9 * torch.ones(IMAGES, 2, 3, SIZE_PX, SIZE_PX)
    figures = pairs.evaluate(lambda *_: far * weight, k=2, seed=0)
    assert figures["l1"] == pytest.approx(float((1 - pairs.targets).mean()), rel=1e-6)


# Temperature


def noise_seen(temperature: float | Tensor, batch_images: int = 64) -> Tensor:
    """The noise [IMAGES, 2, Z] that an evaluation gives, label figure left out."""
    seen = []

    def draw(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return noisy(condition, label, noise)

    evaluator(batch_images=batch_images).evaluate(draw, k=2, seed=4, temperature=temperature)
    return torch.cat(seen)


def test_temperature_multiplies_the_noise() -> None:
    plain = noise_seen(1.0)
    torch.testing.assert_close(noise_seen(1.5), 1.5 * plain)
    each = torch.linspace(0.5, 2, IMAGES)
    torch.testing.assert_close(noise_seen(each, batch_images=3), each[:, None, None] * plain)


def test_temperature_widens_samples() -> None:
    pairs = evaluator(Moments())
    narrow, wide = (pairs.evaluate(noisy, k=4, seed=0, temperature=t) for t in (0.25, 0.5))
    assert narrow["diversity"] < wide["diversity"]
    assert narrow["feature_diversity"] < wide["feature_diversity"]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_temperature_that_is_no_scale(value: float) -> None:
    with pytest.raises(UserError, match=f"temperature must be finite and > 0, got {value}"):
        evaluator().evaluate(noisy, k=1, seed=0, temperature=value)
    each = torch.ones(IMAGES)
    each[3] = value
    with pytest.raises(UserError, match=f"temperature must be finite and > 0, got {value}"):
        evaluator().evaluate(noisy, k=1, seed=0, temperature=each)


def test_temperatures_of_other_images() -> None:
    with pytest.raises(UserError, match=r"one number or 7, one an image, got \[3\]"):
        evaluator().evaluate(noisy, k=1, seed=0, temperature=torch.ones(3))


# Labels


def test_label_following_of_a_generator_that_obeys_and_of_one_that_does_not() -> None:
    count = 60
    labels = torch.arange(count) % 3
    tone = torch.tensor([-0.5, 0.0, 0.5])
    conditions = 0.2 * uniform(count, 1, SIZE_PX, SIZE_PX, seed=0)
    targets = (conditions + tone[labels][:, None, None, None]).expand(-1, 3, -1, -1)
    pairs = Evaluator(
        conditions, labels, targets, noise_size=NOISE_SIZE, features=(KID, Moments())
    )  # fmt: skip

    def obedient(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        samples = condition + tone[label][:, None, None, None]
        return (samples[:, None] + 0.05 * noise[:, :, :1, None, None]).expand(-1, -1, 3, -1, -1)

    def deaf(condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        return obedient(condition, torch.ones_like(label), noise)

    figures = [pairs.evaluate(draw, k=2, seed=0)["label_following"] for draw in (obedient, deaf)]
    assert figures == pytest.approx([1.0, 0.0], abs=0.02)


def test_one_label_has_no_label_figure() -> None:
    pairs = evaluator(Moments())
    pairs.labels = torch.zeros(IMAGES, dtype=torch.int64)
    assert "label_following" not in pairs.evaluate(noisy, k=1, seed=0)


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

    with pytest.raises(NonFiniteError, match="kid_unpaired_moments"):
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
    with pytest.raises(DataError, match="kid_unpaired_moments needs two images or more"):
        Evaluator(*one, noise_size=NOISE_SIZE, features=("kid_unpaired_moments", Moments()))
    figures = Evaluator(*one, noise_size=NOISE_SIZE, features=None).evaluate(noisy, k=2, seed=0)
    assert figures["images"] == 1
    assert not [name for name in figures if name.endswith("_se")]  # one image has no error
    json.dumps(figures, allow_nan=False)
    assert figures["ssim_condition"] == pytest.approx(1.0)

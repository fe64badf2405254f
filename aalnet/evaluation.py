"""How good a generator is on held-out pairs: energy scores, kernel distance, likeness, diversity.

The scores themselves are in scores.py. Images are float in [-1, 1].
Shapes: N images in all, n of them in a batch, k samples per condition, Z noise size, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from aalnet import scores
from aalnet.errors import AalnetError, DataError, NonFiniteError, UserError
from aalnet.sampling import as_temperature, noise_for
from aalnet.scores import DATA_RANGE, Estimate

Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""condition [n, Cx, H, W], label [n], noise [n, k, Z] -> samples [n, k, Cy, H, W]"""

Figures = dict[str, float | int]

MIN_SIZE_PX = 6  # SSIM's 11-pixel window is padded by reflection, 5 pixels on each side
FEW_PAIRS = 100  # below, standard errors are about as large as what models differ by


class Evaluator:
    """Evaluates generators on one set of pairs; what does not depend on them is computed once.

    conditions [N, Cx, H, W] and targets [N, Cy, H, W] float in [-1, 1], labels int64 [N].
    features: the kernel distance's name and network (`aalnet.features.load_features`), moved to the
    targets' device; None leaves out what is measured in features.
    """

    def __init__(
        self,
        conditions: Tensor,
        labels: Tensor,
        targets: Tensor,
        *,
        noise_size: int,
        features: tuple[str, nn.Module] | None,
        batch_images: int = 64,
    ) -> None:
        _check_pairs(conditions, labels, targets)
        if features is not None and len(targets) < 2:
            raise DataError(f"{features[0]} needs two images or more, got {len(targets)}")
        self.conditions = conditions
        self.labels = labels
        self.targets = targets
        self.noise_size = noise_size
        self.features = None if features is None else (features[0], features[1].to(targets.device))
        self.batch_images = batch_images

    @torch.no_grad()
    def evaluate(
        self, draw: Draw, *, k: int, seed: int, temperature: float | Tensor = 1.0
    ) -> Figures:
        """Figures of the generator behind `draw`; names ending in `_condition` are those of
        returning the condition itself, the floor that a generator has to beat, and names ending in
        `_se` the standard errors over images, where there is more than one image.

        images, k             how many images, and samples per image
        energy_score          mean_k d(y, s_k) - 1/2 mean_{j != k} d(s_j, s_k), d of features
        pixel_energy_score    the same, d the root mean square of pixels
        kid_unpaired_...      kernel distance of the samples to the targets of other conditions
        best_of_k_l1          mean over images of the smallest L1 of the k samples
        diversity             mean over images and pairs of samples of mean |difference|, else 0
        feature_diversity     the same, distances of features
        label_following       how far another label moves samples towards that label's targets:
                              0 not at all, 1 all the way; left out where targets do not differ
        l1, ssim              mean over images, first sample
        psnr                  dB, of the squared error of all images together (one image drawn
                              exactly would make a mean over images infinite), first sample;
                              left out where all are exact

        Noise belongs to (seed, image, sample): neither the batch size nor k changes a sample. It is
        multiplied by the temperature, which a tensor [N] gives each image for itself.
        Samples are clamped to [-1, 1]; one that is not finite is an error.
        """
        if k < 1:
            raise UserError(f"k must be >= 1, got {k}")
        scale = self._temperatures(temperature)
        firsts, features = [], []
        by_image: dict[str, list[Tensor]] = {
            "pixel_energy_score": [], "best_of_k_l1": [], "diversity": [],
        }  # fmt: skip
        for batch in self._batches():
            samples = self._draw(draw, batch, self.labels, self._noise(batch, k, seed, scale))
            targets = self.targets[batch]
            firsts.append(samples[:, 0])
            nearest = scores.mean_difference(samples, targets[:, None]).amin(dim=1)
            by_image["best_of_k_l1"].append(nearest)
            by_image["pixel_energy_score"].append(scores.pixel_energy_score(targets, samples))
            by_image["diversity"].append(scores.diversity(samples))
            if self.features is not None:
                found = self._features(samples.flatten(0, 1))
                features.append(found.view(len(targets), k, -1))
        estimates = {name: Estimate.of(torch.cat(values)) for name, values in by_image.items()}
        if self.features is not None:
            of_samples = torch.cat(features)
            estimates |= self._of_features(of_samples)
            estimates |= self._label_following(draw, of_samples[:, 0], seed, scale)
        return {
            "images": len(self.targets),
            "k": k,
            **_flat(estimates),
            **self._likeness(torch.cat(firsts)),
            **self._condition_figures,
        }

    @torch.no_grad()
    def energy_scores(
        self, draw: Draw, *, k: int, seed: int, temperature: float | Tensor = 1.0
    ) -> Tensor:
        """The energy score of each image, [N] on CPU: in features, or in pixels where there are
        none. A fraction of `evaluate`'s time. Arguments as there.
        """
        scale, found = self._temperatures(temperature), []
        for batch in self._batches():
            samples = self._draw(draw, batch, self.labels, self._noise(batch, k, seed, scale))
            if self.features is None:
                found.append(scores.pixel_energy_score(self.targets[batch], samples).cpu())
            else:
                features = self._features(samples.flatten(0, 1)).view(len(samples), k, -1)
                real = self._target_features[batch]
                found.append(scores.feature_energy_score(real, features))
        return torch.cat(found)

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.targets), self.batch_images):
            yield slice(start, min(start + self.batch_images, len(self.targets)))

    def _temperatures(self, temperature: float | Tensor) -> Tensor:
        """One for each image, [N]."""
        scale, count = as_temperature(temperature), len(self.targets)
        if scale.shape not in ((), (count,)):
            raise UserError(
                f"temperature must be one number or {count}, one an image, got {list(scale.shape)}"
            )
        return scale.to(self.targets.device).expand(count)

    def _noise(self, batch: slice, k: int, seed: int, scale: Tensor) -> Tensor:
        """[n, k, Z] on the targets' device, times each image's temperature of `scale` [N]."""
        noise = noise_for(seed, batch.start, batch.stop - batch.start, k, self.noise_size)
        return noise.to(self.targets.device) * scale[batch, None, None]

    def _draw(self, draw: Draw, batch: slice, labels: Tensor, noise: Tensor) -> Tensor:
        """Samples [n, k, Cy, H, W] of labels [N] and noise [n, k, Z], finite and in [-1, 1]."""
        targets = self.targets[batch]
        samples = draw(self.conditions[batch], labels[batch], noise)
        expected = (*noise.shape[:2], *targets.shape[1:])
        if samples.shape != expected:
            raise AalnetError(f"draw must give samples {expected}, got {tuple(samples.shape)}")
        bad = samples.isfinite().flatten(1).all(dim=1).logical_not().nonzero()
        if len(bad):
            index = batch.start + int(bad[0])
            raise NonFiniteError(f"a sample of image {index} is not finite")
        return samples.to(targets).clamp(-1, 1)

    def _of_features(self, samples: Tensor) -> dict[str, Estimate]:
        """What is measured in features [N, k, F]."""
        assert self.features is not None
        targets = self._target_features
        return {
            "energy_score": Estimate.of(scores.feature_energy_score(targets, samples)),
            self.features[0]: scores.kernel_distance(targets, samples),
            "feature_diversity": Estimate.of(scores.feature_diversity(samples)),
        }

    def _label_following(
        self, draw: Draw, own: Tensor, seed: int, scale: Tensor
    ) -> dict[str, Estimate]:
        """By first samples, whose features [N, F] with their own labels are `own`."""
        labels = scores.next_labels(self.labels)
        if torch.equal(labels, self.labels):
            return {}
        other = torch.cat([
            self._features(
                self._draw(draw, batch, labels, self._noise(batch, 1, seed, scale))[:, 0]
            )
            for batch in self._batches()
        ])  # fmt: skip
        followed = scores.label_following(other - own, self.labels.cpu(), self._target_features)
        return {"label_following": Estimate.of(followed)} if len(followed) else {}

    @cached_property
    def _condition_figures(self) -> Figures:
        """Of the condition as the one sample there is: its diversity is 0."""
        images = with_channels(self.conditions, self.targets.shape[1])
        figures = self._likeness(images)
        once = images[:, None]
        figures["pixel_energy_score"] = _mean(scores.pixel_energy_score(self.targets, once))
        if self.features is not None:
            of_features = self._of_features(self._features(images)[:, None])
            figures |= {
                name: of_features[name].value for name in ("energy_score", self.features[0])
            }
        return {f"{name}_condition": value for name, value in figures.items()}

    @cached_property
    def _target_features(self) -> Tensor:
        return self._features(self.targets)

    def _likeness(self, images: Tensor) -> Figures:
        """Figures of one image [N, Cy, H, W] per target."""
        psnr = float(peak_signal_noise_ratio(images, self.targets, data_range=DATA_RANGE))
        ssim = [scores.structural_similarity(images[b], self.targets[b]) for b in self._batches()]
        return {
            "l1": _mean(scores.mean_difference(images, self.targets)),
            "ssim": _mean(torch.cat(ssim)),
            **({"psnr": psnr} if math.isfinite(psnr) else {}),
        }

    def _features(self, images: Tensor) -> Tensor:
        """[M, C, H, W] -> [M, F] float64 on CPU"""
        assert self.features is not None
        name, network = self.features
        features = torch.cat([network(part) for part in torch.split(images, self.batch_images)])
        if not features.isfinite().all():
            raise NonFiniteError(f"the features of {name} are not finite; try other features")
        return features.double().cpu()


def _flat(estimates: Mapping[str, Estimate]) -> Figures:
    """Each value under its name, its standard error, where there is one, beside it."""
    figures: Figures = {}
    for name, estimate in estimates.items():
        figures[name] = estimate.value
        if math.isfinite(estimate.standard_error):  # JSON has no NaN
            figures[f"{name}_se"] = estimate.standard_error
    return figures


def few_pairs(count: int) -> str | None:
    """What to be told of so many held-out pairs; None where they are enough."""
    if count >= FEW_PAIRS:
        return None
    return (
        f"{count} held-out pairs are few: below {FEW_PAIRS}, standard errors are about as large as "
        "what models differ by; give data.test more pairs, or raise evaluation.max_images"
    )


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images with that many channels: as they are, or their mean repeated.

    [N, C, H, W] -> [N, channels, H, W]
    """
    if images.shape[1] == channels:
        return images
    return images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _check_pairs(conditions: Tensor, labels: Tensor, targets: Tensor) -> None:
    fits = (
        conditions.ndim == targets.ndim == 4
        and conditions.shape[2:] == targets.shape[2:]
        and conditions.shape[0] == targets.shape[0] == labels.numel()
        and labels.ndim == 1
        and len(targets) > 0
    )
    if not fits:
        raise DataError(
            "evaluation needs conditions [N, Cx, H, W], labels [N] and targets [N, Cy, H, W], got "
            f"{list(conditions.shape)}, {list(labels.shape)} and {list(targets.shape)}"
        )
    if min(targets.shape[2:]) < MIN_SIZE_PX:
        raise DataError(
            f"evaluation needs images of {MIN_SIZE_PX} px or more, got {list(targets.shape[2:])}"
        )

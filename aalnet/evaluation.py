"""How good samples are: likeness to the target, likeness of the distribution, and diversity.

Images are float in [-1, 1], and every difference is on that scale (black to white is 2): `l1`,
`best_of_k_l1` and `diversity` alike.
Shapes: N images in all, n of them in a batch, k samples per condition, Z noise size, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.kid import KernelInceptionDistance

from aalnet.errors import AalnetError, DataError, NonFiniteError, UserError
from aalnet.sampling import noise_for

Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""condition [n, Cx, H, W], label [n], noise [n, k, Z] -> samples [n, k, Cy, H, W]"""

Figures = dict[str, float | int]

DATA_RANGE = 2.0  # white minus black
MIN_SIZE_PX = 6  # SSIM's 11-pixel window is padded by reflection, 5 pixels on each side


class Evaluator:
    """Evaluates generators on one set of pairs; what does not depend on them is computed once.

    conditions [N, Cx, H, W] and targets [N, Cy, H, W] float in [-1, 1], labels int64 [N].
    features: the kernel distance's name and network (`aalnet.features.load_features`), moved to the
    targets' device; None leaves the distance out.
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
    def evaluate(self, draw: Draw, *, k: int, seed: int) -> Figures:
        """Figures of the generator behind `draw`; names ending in `_condition` are those of
        returning the condition itself, the floor that a generator has to beat.

        images, k       how many images, and samples per image
        kid_...         kernel distance (unbiased squared MMD) of the first samples to the targets
        l1, ssim        mean over images, first sample
        psnr            dB, of the squared error of all images together (one image drawn exactly
                        would make a mean over images infinite), first sample
        best_of_k_l1    mean over images of the smallest L1 of the k samples
        diversity       mean over images and pairs of samples of mean |difference|; 0 for k = 1

        Noise belongs to (seed, image, sample): neither the batch size nor k changes a sample.
        Samples are clamped to [-1, 1]; one that is not finite is an error.
        """
        if k < 1:
            raise UserError(f"k must be >= 1, got {k}")
        firsts, best, spread = [], [], []
        for batch in self._batches():
            samples = self._draw(draw, batch, k=k, seed=seed)
            firsts.append(samples[:, 0])
            best.append(mean_difference(samples, self.targets[batch, None]).amin(dim=1))
            spread.append(diversity(samples))
        return {
            "images": len(self.targets),
            "k": k,
            **self._likeness(torch.cat(firsts)),
            "best_of_k_l1": _mean(torch.cat(best)),
            "diversity": _mean(torch.cat(spread)),
            **self._condition_figures,
        }

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.targets), self.batch_images):
            yield slice(start, min(start + self.batch_images, len(self.targets)))

    def _draw(self, draw: Draw, batch: slice, *, k: int, seed: int) -> Tensor:
        """Samples [n, k, Cy, H, W], finite and in [-1, 1]."""
        targets = self.targets[batch]
        noise = noise_for(seed, batch.start, batch.stop - batch.start, k, self.noise_size)
        samples = draw(self.conditions[batch], self.labels[batch], noise.to(targets.device))
        expected = (len(targets), k, *targets.shape[1:])
        if samples.shape != expected:
            raise AalnetError(f"draw must give samples {expected}, got {tuple(samples.shape)}")
        bad = samples.isfinite().flatten(1).all(dim=1).logical_not().nonzero()
        if len(bad):
            index = batch.start + int(bad[0])
            raise NonFiniteError(f"a sample of image {index} is not finite (seed {seed}, k {k})")
        return samples.to(targets).clamp(-1, 1)

    @cached_property
    def _condition_figures(self) -> Figures:
        images = with_channels(self.conditions, self.targets.shape[1])
        return {f"{name}_condition": value for name, value in self._likeness(images).items()}

    @cached_property
    def _target_features(self) -> Tensor:
        return self._features(self.targets)

    def _likeness(self, images: Tensor) -> Figures:
        """Figures of one image [N, Cy, H, W] per target."""
        figures: Figures = {}
        if self.features is not None:
            distance = kernel_distance(self._target_features, self._features(images))
            figures[self.features[0]] = distance
        psnr = peak_signal_noise_ratio(images, self.targets, data_range=DATA_RANGE)
        ssim = [structural_similarity(images[b], self.targets[b]) for b in self._batches()]
        return figures | {
            "l1": _mean(mean_difference(images, self.targets)),
            "ssim": _mean(torch.cat(ssim)),
            "psnr": float(psnr),
        }

    def _features(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, F] float64 on CPU"""
        assert self.features is not None
        name, network = self.features
        features = torch.cat([network(images[batch]) for batch in self._batches()])
        if not features.isfinite().all():
            raise NonFiniteError(f"the features of {name} are not finite; try other features")
        return features.double().cpu()


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean |a - b| over channels and pixels.  [..., C, H, W] in [-1, 1] -> [...] in [0, 2]"""
    return (a - b).abs().mean(dim=(-3, -2, -1))


def diversity(samples: Tensor) -> Tensor:
    """Mean over pairs of samples of mean |difference|.  [n, k, C, H, W] in [-1, 1] -> [n]

    Per pixel, the i-th of the k - 1 gaps between sorted values lies inside i (k - i) pairs.
    """
    k = samples.shape[1]
    gaps = samples.sort(dim=1).values.diff(dim=1)  # [n, k - 1, C, H, W]
    below = torch.arange(1, k, device=samples.device)
    pairs_across = (below * (k - below)).view(-1, 1, 1, 1)
    pairs = max(k * (k - 1) // 2, 1)
    return (gaps * pairs_across).sum(dim=1).mean(dim=(-3, -2, -1)) / pairs


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM per image.  [n, C, H, W] in [-1, 1] -> [n] in [-1, 1]

    SSIM compares means as ratios, so black must be 0: images are moved to [0, 2] first.
    """
    ssim = structural_similarity_index_measure(
        a + 1, b + 1, data_range=DATA_RANGE, reduction="none"
    )
    assert isinstance(ssim, Tensor)
    return ssim


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Squared MMD, unbiased, cubic kernel (KID) between two feature sets of one size N >= 2.

    [N, F], [N, F] -> about 0 for one distribution (at times below), larger is further apart. One
    subset of all N, so nothing random is left but the order of a sum, which is pinned here.
    """
    with warnings.catch_warnings():
        # It says that it keeps the features in memory; they are the caller's, and there already.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance`", UserWarning)
        metric = KernelInceptionDistance(
            nn.Identity(),
            subsets=1,
            subset_size=len(real),
            sync_on_compute=False,  # worker 0 measures alone; the others would never answer
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


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

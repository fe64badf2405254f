"""Generator, Discriminator and Proposal on one Encoder.

Shapes: N conditions, K samples per condition, J images judged per condition, P patches, C channels
(Cx of a condition, Cy of a target), H W pixels, Z noise size, E embedding size. Images are
float in [-1, 1] (a generator's output may leave that range a little; it has no tanh).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalnet.blocks import BLOCKS, SILU_GAIN, conv, linear
from aalnet.gaussian import Gaussian
from aalnet.settings import Settings

SMALLEST_PX = 8  # the encoder halves the image until this size
HEAD_PX = 4  # the fully connected layers see a map of this size
OUTPUT_GAIN = 0.1  # a large output layer saturates early training


@dataclass(frozen=True)
class DataSpec:
    """What the networks must know of a data set; stored beside every checkpoint."""

    labels: tuple[str, ...]
    condition_channels: int
    target_channels: int


@dataclass(frozen=True)
class Architecture:
    """Sizes after the preset was resolved."""

    widths: tuple[int, ...]  # channels per level, full size first
    encoder_blocks: int
    decoder_blocks: int
    embedding_size: int
    noise_size: int
    blocks: str
    start_from_condition: bool


PRESETS = {
    "tiny": Architecture((16, 32, 64, 64, 64, 64), 1, 1, 64, 32, "resnet", True),
    "base": Architecture((64, 128, 256, 256, 256, 256), 2, 1, 256, 32, "resnet", True),
    "large": Architecture((96, 192, 384, 512, 512, 512), 3, 2, 512, 32, "resnet", True),
}


def architecture(settings: Settings) -> Architecture:
    """The preset with every given size put in its place."""
    network, preset = settings.network, PRESETS[settings.network.preset]
    levels = (settings.data.size_px // SMALLEST_PX).bit_length()
    return Architecture(
        widths=network.widths or preset.widths[:levels],
        encoder_blocks=network.encoder_blocks or preset.encoder_blocks,
        decoder_blocks=network.decoder_blocks or preset.decoder_blocks,
        embedding_size=network.embedding_size or preset.embedding_size,
        noise_size=network.noise_size,
        blocks=network.blocks,
        start_from_condition=network.start_from_condition,
    )


def stack(family: str, c_in: int, c_out: int, depth: int) -> nn.Sequential:
    """`depth` blocks of a family; the first changes the width."""
    block = BLOCKS[family]
    return nn.Sequential(*(block(c_in if i == 0 else c_out, c_out) for i in range(depth)))


class Encoder(nn.Module):
    """Features at every level. The same shape in G and D, so `offset` can compare them.

    [M, W0, H, W] -> ([M, W0, H, W], [M, W1, H/2, W/2], ...)
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = (arch.widths[0], *arch.widths)
        self.levels = nn.ModuleList(
            stack(arch.blocks, c_in, c_out, arch.encoder_blocks) for c_in, c_out in pairwise(widths)
        )

    def forward(self, h: Tensor) -> list[Tensor]:
        """h [N, C_0, H, W] -> the features of each level [N, C_i, H/2^i, W/2^i]."""
        features: list[Tensor] = []
        for i, level in enumerate(self.levels):
            h = level(F.avg_pool2d(h, 2) if i else h)
            features.append(h)
        return features


class DecoderLevel(nn.Module):
    """Up-sample, add the condition's part, modulate by noise and label, convolve."""

    def __init__(self, c_in: int | None, c_skip: int, arch: Architecture) -> None:
        """c_in: channels of the level below; None at the deepest."""
        super().__init__()
        self.narrow = None if c_in is None else conv(c_in, c_skip, 1)
        self.skip = conv(c_skip, c_skip, 1)
        self.modulation = linear(arch.embedding_size, 2 * c_skip)
        self.blocks = stack(arch.blocks, c_skip, c_skip, arch.decoder_blocks)

    def forward(self, h: Tensor | None, skip: Tensor, modulation: Tensor) -> Tensor:
        """h [N*K, C_in, H/2, W/2] or None at the deepest level, skip [N, C, H, W],
        modulation [N*K, 2C] -> [N*K, C, H, W]"""
        samples = modulation.shape[0] // skip.shape[0]
        h_skip = skip.repeat_interleave(samples, dim=0) if samples > 1 else skip
        if h is not None and self.narrow is not None:
            h_skip = h_skip + F.interpolate(self.narrow(h), scale_factor=2.0, mode="nearest")
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.blocks(h_skip * (1 + scale) + shift)
        return out


class Generator(nn.Module):
    """G(x; theta_G): several targets for one condition.

    condition [N, Cx, H, W], label int64 [N], noise [N, K, Z] -> samples [N, K, Cy, H, W].
    `encode` runs once per condition. The learned prior p(z|x, c) makes codes of the noise; they and
    the label enter in the decoder. The stages (`encode`, `prior`, `modulate`, `decode`) are for
    callers that hold samples of many conditions at once.
    """

    def __init__(self, settings: Settings, spec: DataSpec) -> None:
        super().__init__()
        arch = architecture(settings)
        w0, e = arch.widths[0], arch.embedding_size
        self.stem = conv(spec.condition_channels, w0, 3)
        self.encoder = Encoder(arch)
        self.label = nn.Embedding(len(spec.labels), e)
        self.moments = linear(arch.widths[-1] + e, 2 * arch.noise_size, gain=0)
        self.embed = nn.Sequential(
            linear(arch.noise_size + e, e), nn.SiLU(), linear(e, e, SILU_GAIN), nn.SiLU()
        )
        self.decoder = nn.ModuleList(
            DecoderLevel(c_in, c_skip, arch)
            for c_skip, c_in in pairwise((*arch.widths, None))
            if c_skip is not None
        )
        self.output = conv(w0, spec.target_channels, 3, SILU_GAIN * OUTPUT_GAIN)
        self.start: nn.Conv2d | None = None
        if arch.start_from_condition:
            self.start = conv(spec.condition_channels, spec.target_channels, 1)
            nn.init.constant_(self.start.weight, 1 / spec.condition_channels)

    def forward(self, condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        """condition [N, Cx, H, W], label [N], noise [N, K, Z] -> samples [N, K, Cy, H, W]."""
        skips, summary = self.encode(condition)
        codes = self.prior(summary, self.label(label)).codes(noise)
        return self.render(condition, skips, label, codes)

    def encode(self, condition: Tensor) -> tuple[list[Tensor], Tensor]:
        """The condition's part of every decoder level, deepest first: [N, C, h, w] each; and its
        summary [N, C], which the prior sees."""
        features = self.encoder(self.stem(condition))
        levels = zip(reversed(self.decoder), reversed(features), strict=True)
        skips = [_level(level).skip(feature) for level, feature in levels]
        return skips, F.silu(features[-1]).mean(dim=(2, 3))

    def prior(self, summary: Tensor, label_embedding: Tensor) -> Gaussian:
        """p(z|x, c), N(0, 1) at first.  summary [N, C], label_embedding [N, E] -> [N, Z]"""
        moments = self.moments(torch.cat([summary, label_embedding], dim=1))
        return Gaussian(*_full_precision(moments).chunk(2, dim=1))

    def render(
        self, condition: Tensor, skips: list[Tensor], label: Tensor, codes: Tensor
    ) -> Tensor:
        """codes [N, K, Z] -> samples [N, K, Cy, H, W]"""
        n, k, _ = codes.shape
        label_embedding = self.label(label)[:, None].expand(n, k, -1)
        modulations = self.modulate(codes.flatten(0, 1), label_embedding.flatten(0, 1))
        samples = self.decode(skips, modulations)
        samples = samples.view(n, k, *samples.shape[1:])
        if self.start is not None:
            samples = samples + self.start(condition)[:, None]
        return _full_precision(samples)

    def modulate(self, codes: Tensor, label_embedding: Tensor) -> list[Tensor]:
        """codes [M, Z], label_embedding [M, E] -> [M, 2C] for every decoder level, deepest first"""
        embedding = self.embed(torch.cat([codes, label_embedding], dim=1))
        return [_level(level).modulation(embedding) for level in reversed(self.decoder)]

    def decode(self, skips: list[Tensor], modulations: list[Tensor]) -> Tensor:
        """skips of N conditions, modulations of M = N*K samples -> [M, Cy, H, W], no `start`"""
        h: Tensor | None = None
        for level, skip, modulation in zip(reversed(self.decoder), skips, modulations, strict=True):
            h = level(h, skip, modulation)
        assert h is not None
        out: Tensor = self.output(h)  # linear: behind a SiLU the easiest answer is silence
        return out


def _level(module: nn.Module) -> DecoderLevel:
    assert isinstance(module, DecoderLevel)
    return module


class _PairEncoder(nn.Module):
    """Encoder over a condition, an image and a label: the trunk of Discriminator and Proposal."""

    def __init__(self, settings: Settings, spec: DataSpec) -> None:
        super().__init__()
        arch = architecture(settings)
        e = arch.embedding_size
        self.stem_condition = conv(spec.condition_channels, arch.widths[0], 3)
        self.stem_image = conv(spec.target_channels, arch.widths[0], 3)
        self.encoder = Encoder(arch)
        self.label = nn.Embedding(len(spec.labels), e)
        deepest_px = settings.data.size_px >> (len(arch.widths) - 1)
        self.head_px = min(deepest_px, HEAD_PX)
        self.hidden = linear(arch.widths[-1] * self.head_px**2 + e, e, SILU_GAIN)

    def pair(self, condition: Tensor, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """condition [N, Cx, H, W], images [N, J, Cy, H, W], label [N] -> the deepest features
        [N*J, C, h, w] and the embedding of the whole [N*J, E], both after their SiLU"""
        judged = images.shape[1]
        h = self.stem_condition(condition).repeat_interleave(judged, dim=0)
        h = F.silu(self.encoder(h + self.stem_image(images.flatten(0, 1)))[-1])
        flat = F.avg_pool2d(h, h.shape[-1] // self.head_px).flatten(1)
        label_embedding = self.label(label).repeat_interleave(judged, dim=0)
        return h, F.silu(self.hidden(torch.cat([flat, label_embedding], dim=1)))


class Discriminator(_PairEncoder):
    """D(y given x; theta_D): does the image match the condition and label?

    condition [N, Cx, H, W], images [N, J, Cy, H, W] (or [N, Cy, H, W]), label int64 [N]
    -> logits [N, J, P] (or [N, P]), one for each patch, a position of the deepest features: the
    logit of the whole image plus the patch's own. `sigmoid(logit)` is the probability of a match.
    """

    def __init__(self, settings: Settings, spec: DataSpec) -> None:
        super().__init__(settings, spec)
        arch = architecture(settings)
        self.whole = linear(arch.embedding_size, 1, SILU_GAIN)
        self.patch = conv(arch.widths[-1], 1, 1, SILU_GAIN)

    def forward(self, condition: Tensor, images: Tensor, label: Tensor) -> Tensor:
        """images [N, Cy, H, W] -> logits [N, P]; images [N, J, Cy, H, W] -> logits [N, J, P]."""
        if images.ndim == 4:
            return self.forward(condition, images[:, None], label)[:, 0]
        h, embedding = self.pair(condition, images, label)
        logits = self.whole(embedding) + self.patch(h).flatten(1)
        return _full_precision(logits.view(*images.shape[:2], -1))


class Proposal(_PairEncoder):
    """q(z given x, c, y): a diagonal Gaussian over the codes from which G would draw y.

    condition [N, Cx, H, W], target [N, Cy, H, W], label int64 [N] -> mean, log std, each [N, Z]
    """

    def __init__(self, settings: Settings, spec: DataSpec) -> None:
        super().__init__(settings, spec)
        arch = architecture(settings)
        self.moments = linear(arch.embedding_size, 2 * arch.noise_size, SILU_GAIN)
        # As wide as the prior at first: exp() of a random layer starts with codes of thousands.
        nn.init.zeros_(self.moments.weight[arch.noise_size :])

    def forward(self, condition: Tensor, target: Tensor, label: Tensor) -> Gaussian:
        """Pairs of N images [N, C, H, W] and labels [N] -> q, moments [N, Z]."""
        _, embedding = self.pair(condition, target[:, None], label)
        return Gaussian(*_full_precision(self.moments(embedding)).chunk(2, dim=1))


def _full_precision(output: Tensor) -> Tensor:
    """float32 for what autocast left in bfloat16: terms are never computed in less."""
    return output.float() if output.dtype == torch.bfloat16 else output

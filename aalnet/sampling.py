"""Drawing samples for people: seeded noise, the draw itself, and a grid picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from aalnet.errors import UserError
from aalnet.networks import Generator

GAP_PX = 2
HEAD_PX = 20


def best_device() -> torch.device:
    """Where people's models run: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def noise_for(seed: int, first: int, count: int, k: int, noise_size: int) -> Tensor:
    """Noise of images `first` .. `first + count - 1`, each from (seed, its index) alone.

    -> [count, k, Z] standard normal. k smaller than before gives a prefix of the same noise.
    """
    rows = [
        np.random.default_rng((seed, index)).standard_normal((k, noise_size), np.float32)
        for index in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, k, noise_size)


def as_temperature(value: float | Tensor) -> Tensor:
    """What noise is multiplied by: 1 is training's; more is more varied, less nearer the average.

    Raises:
        UserError: it is not finite or not above 0.
    """
    temperature = torch.as_tensor(value, dtype=torch.float32)
    wrong = temperature[~(temperature.isfinite() & (temperature > 0))]
    if wrong.numel():
        raise UserError(f"temperature must be finite and > 0, got {float(wrong[0])}")
    return temperature


@torch.inference_mode()
def draw(generator: Generator, condition: Tensor, label: Tensor, noise: Tensor) -> Tensor:
    """Samples for people to look at, clamped.

    condition [N, Cx, H, W], label [N], noise [N, K, Z] -> [N, K, Cy, H, W] in [-1, 1]
    """
    dtype = next(generator.parameters()).dtype
    samples: Tensor = generator(condition.to(dtype), label, noise.to(dtype))
    return samples.float().clamp(-1, 1)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """[..., C, H, W] in [-1, 1] -> uint8 [..., H, W, 3]; one channel becomes three."""
    result: NDArray[np.uint8] = to_pixels(images.detach().float().cpu()).numpy()
    return result


def to_pixels(images: Tensor) -> Tensor:
    """`to_uint8` on the device that the images are on."""
    if images.shape[-3] == 1:
        images = images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous()


def from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 -> float in [-1, 1], of the same shape."""
    return from_pixels(torch.from_numpy(pixels))


def from_pixels(pixels: Tensor) -> Tensor:
    """`from_uint8` on the device that the pixels are on."""
    return pixels.float() / 127.5 - 1


def grid(
    rows: Sequence[Sequence[Tensor]], heads: Sequence[str] = (), *, cell_px: int = 96
) -> Image.Image:
    """A picture with one row per condition and, above each column, its head.

    rows of images [C, H, W] in [-1, 1], all rows of one length.
    """
    pitch, top = cell_px + GAP_PX, HEAD_PX if heads else 0
    columns = max(len(row) for row in rows)
    size = (columns * pitch + GAP_PX, len(rows) * pitch + GAP_PX + top)
    picture = Image.new("RGB", size, (128, 128, 128))
    pen = ImageDraw.Draw(picture)
    for j, head in enumerate(heads):
        pen.text((j * pitch + GAP_PX + 2, 2), head, fill=(255, 255, 255), font_size=HEAD_PX - 6)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            cell = Image.fromarray(to_uint8(image))
            grows = cell.width < cell_px
            how = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
            at = (j * pitch + GAP_PX, i * pitch + GAP_PX + top)
            picture.paste(cell.resize((cell_px, cell_px), how), at)
    return picture

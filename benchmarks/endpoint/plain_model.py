"""A model run in the plainest way, which the rivals of the endpoint share."""

from __future__ import annotations

import io

import torch
from PIL import Image

from aalnet.sampling import draw, from_uint8, noise_for, to_uint8
from cluster.data.pictures import MODES, decode_image
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.location import open_store


class PlainModel:
    """Decode, draw, encode: what every server must do for a request, in the plainest way."""

    def __init__(self, storage: str, run: str) -> None:
        torch.set_num_threads(1)
        self.checkpoint = find_checkpoint(open_store(storage), run)
        self.generator, self.settings = load_generator(self.checkpoint, torch.device("cpu"))
        self.spec = self.checkpoint.manifest().spec
        self.noise_size = self.settings.network.noise_size

    def condition(self, data: bytes) -> torch.Tensor:
        """An image file as a condition [Cx, S, S] in [-1, 1]."""
        mode = MODES[self.spec.condition_channels]
        size_px = self.settings.data.size_px
        return from_uint8(decode_image(data, "image", size_px, convert_to=mode)[0])

    def draw(self, requests: list[tuple[torch.Tensor, int, int]]) -> torch.Tensor:
        """(condition, seed, samples) of each request, all of one number of samples."""
        conditions = torch.stack([condition for condition, _, _ in requests])
        noise = torch.cat([noise_for(seed, 0, 1, k, self.noise_size) for _, seed, k in requests])
        labels = torch.zeros(len(requests), dtype=torch.int64)
        return draw(self.generator, conditions, labels, noise)

    def png(self, samples: torch.Tensor) -> bytes:
        """Samples [k, 3, S, S] below each other."""
        buffer = io.BytesIO()
        pixels = to_uint8(samples)
        sheet = Image.fromarray(pixels.reshape(-1, *pixels.shape[2:]))
        sheet.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

"""What the endpoint is measured against: the bare model loop, a plain handler.

`python -m benchmarks.endpoint.rivals bare|plain STORAGE RUN SECONDS|PORT`
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Annotated

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Form, Response, UploadFile
from PIL import Image

from aalnet.sampling import draw, from_uint8, noise_for, to_uint8
from cluster.data.pictures import MODES, decode_image
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.location import open_store
from deploy.endpoint.model import Loader, SampleQuery
from deploy.endpoint.settings import EndpointSettings

BATCH = 8  # conditions: one of each client


class PlainModel:
    """Decode, draw, encode: what every server must do for a request, in the plainest way."""

    def __init__(self, storage: str, run: str) -> None:
        torch.set_num_threads(1)
        self.checkpoint = find_checkpoint(open_store(storage), run)
        self.generator, self.settings = load_generator(self.checkpoint, torch.device("cpu"))
        self.spec = self.checkpoint.manifest().spec

    def condition(self, data: bytes) -> torch.Tensor:
        """An image file as a condition [Cx, S, S] in [-1, 1]."""
        mode = MODES[self.spec.condition_channels]
        size_px = self.settings.data.size_px
        return from_uint8(decode_image(data, "image", size_px, convert_to=mode)[0])

    def noise(self, seed: int, k: int) -> torch.Tensor:
        """The noise of one request for `k` samples, [1, k, noise_size]."""
        return noise_for(seed, 0, 1, k, self.settings.network.noise_size)

    def draw(self, requests: list[tuple[torch.Tensor, int, int]]) -> torch.Tensor:
        """(condition, seed, samples) of each request, all of one number of samples."""
        conditions = torch.stack([condition for condition, _, _ in requests])
        noise = torch.cat([self.noise(seed, k) for _, seed, k in requests])
        labels = torch.zeros(len(requests), dtype=torch.int64)
        return draw(self.generator, conditions, labels, noise)

    def png(self, samples: torch.Tensor) -> bytes:
        """Samples [k, 3, S, S] below each other."""
        buffer = io.BytesIO()
        pixels = to_uint8(samples)
        sheet = Image.fromarray(pixels.reshape(-1, *pixels.shape[2:]))
        sheet.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def bare(storage: str, run: str, seconds: float) -> dict[str, float]:
    """The model alone, no requests: eager as `aalnet sample` runs it, and as the endpoint runs it.

    Images per second in batches of 8 conditions and the milliseconds of one condition, for 1 and 8
    samples.
    """
    model = PlainModel(storage, run)
    served = Loader(EndpointSettings()).load(model.checkpoint, run)
    source = np.random.default_rng(0)
    size = (model.spec.condition_channels, served.size_px, served.size_px)
    conditions = [source.integers(0, 256, size, np.uint8) for _ in range(BATCH)]
    stacked, labels = from_uint8(np.stack(conditions)), torch.zeros(BATCH, dtype=torch.int64)
    figures: dict[str, float] = {}
    for k in (1, 8):
        noise = torch.cat([model.noise(i, k) for i in range(BATCH)])
        queries = [served.query(c, model.spec.labels[0], k, i) for i, c in enumerate(conditions)]

        def eager(count: int, noise: torch.Tensor = noise) -> object:
            return draw(model.generator, stacked[:count], labels[:count], noise[:count])

        def endpoint(count: int, queries: list[SampleQuery] = queries) -> object:
            return served.draw(queries[:count])

        for name, loop in (("eager", eager), ("served", endpoint)):
            batch_s = mean(_times_s(lambda loop=loop: loop(BATCH), seconds))
            figures[f"{name}_images_per_s {k}"] = BATCH * k / batch_s
        for name, loop in (("eager", eager), ("served", endpoint)):
            one_s = median(_times_s(lambda loop=loop: loop(1), seconds))
            figures[f"{name}_one_ms {k}"] = 1e3 * one_s
    return figures


def _times_s(work: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(5):
        work()
    times = []
    until_s = time.perf_counter() + seconds
    while (started_at_s := time.perf_counter()) < until_s:
        work()
        times.append(time.perf_counter() - started_at_s)
    return times


def plain(storage: str, run: str, port: int) -> None:
    """A FastAPI handler as one writes it first: no batching, a thread per request."""
    model = PlainModel(storage, run)
    app = FastAPI()

    @app.post("/v1/samples")
    def samples(
        image: UploadFile, seed: Annotated[int, Form()], num_samples: Annotated[int, Form()]
    ) -> Response:
        condition = model.condition(image.file.read())
        sheet = model.png(model.draw([(condition, seed, num_samples)])[0])
        return Response(sheet, media_type="image/png")

    uvicorn.run(app, port=port, log_level="error", access_log=False)


def main() -> None:
    """Measure the bare loop and print its figures as JSON, or serve."""
    name, storage, run, number = sys.argv[1:]
    if name == "bare":
        json.dump(bare(storage, run, float(number)), sys.stdout)
    else:
        plain(storage, run, int(number))


if __name__ == "__main__":
    main()

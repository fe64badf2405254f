"""What the endpoint is measured against: the bare model loop, LitServe, a plain handler."""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from aalnet.sampling import draw, from_uint8, noise_for, to_uint8
from cluster.data.pictures import MODES, decode_image
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.location import open_store
from deploy.endpoint.model import LoadedModel, Loader
from deploy.endpoint.settings import EndpointSettings

BATCH = 8  # conditions: one of each client


class Sampler:
    """Decode, draw, encode: what every server must do for a request, in the plainest way."""

    def __init__(self, storage: str, run: str) -> None:
        torch.set_num_threads(1)
        self.found = find_checkpoint(open_store(storage), run)
        self.generator, self.settings = load_generator(self.found, torch.device("cpu"))
        self.spec = self.found.manifest().spec
        self.noise_size = self.settings.network.noise_size

    def condition(self, data: bytes) -> torch.Tensor:
        mode = MODES[self.spec.condition_channels]
        size_px = self.settings.data.size_px
        return from_uint8(decode_image(data, "image", size_px, convert_to=mode)[0])

    def draw(self, asked: list[tuple[torch.Tensor, int, int]]) -> torch.Tensor:
        """(condition, seed, samples) of each request, all of one number of samples."""
        conditions = torch.stack([condition for condition, _, _ in asked])
        noise = torch.cat([noise_for(seed, 0, 1, k, self.noise_size) for _, seed, k in asked])
        labels = torch.zeros(len(asked), dtype=torch.int64)
        return draw(self.generator, conditions, labels, noise)

    def png(self, samples: torch.Tensor) -> bytes:
        buffer = io.BytesIO()
        pixels = to_uint8(samples)
        sheet = Image.fromarray(pixels.reshape(-1, *pixels.shape[2:]))
        sheet.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def bare(storage: str, run: str, seconds: float) -> None:
    """The model alone, no requests: eager as `aalnet sample` runs it, and as the probe chose.

    Prints images per second in batches of 8 conditions and the milliseconds of one condition,
    for 1 and 8 samples.
    """
    sampler = Sampler(storage, run)
    chosen = Loader(EndpointSettings()).load(sampler.found, run)
    source = np.random.default_rng(0)
    size = (sampler.spec.condition_channels, chosen.size_px, chosen.size_px)
    conditions = [source.integers(0, 256, size, np.uint8) for _ in range(BATCH)]
    found = {str(k): _bare(sampler, chosen, conditions, k, seconds) for k in (1, 8)}
    json.dump(found, sys.stdout)


def _bare(
    sampler: Sampler,
    chosen: LoadedModel,
    conditions: list[NDArray[np.uint8]],
    k: int,
    seconds: float,
) -> dict[str, float]:
    generator, stacked = sampler.generator, from_uint8(np.stack(conditions))
    noise = torch.cat([noise_for(i, 0, 1, k, sampler.noise_size) for i in range(BATCH)])
    labels = torch.zeros(BATCH, dtype=torch.int64)
    label = sampler.spec.labels[0]
    drawings = [chosen.drawing(c, label, k, i) for i, c in enumerate(conditions)]

    def eager(count: int) -> Callable[[], object]:
        return lambda: draw(generator, stacked[:count], labels[:count], noise[:count])

    return {
        "eager_images_per_s": BATCH * k / statistics.mean(_times_s(eager(BATCH), seconds)),
        "chosen_images_per_s": BATCH
        * k
        / statistics.mean(_times_s(lambda: chosen.draw(drawings), seconds)),
        "eager_one_ms": 1e3 * statistics.median(_times_s(eager(1), seconds)),
        "chosen_one_ms": 1e3
        * statistics.median(_times_s(lambda: chosen.draw(drawings[:1]), seconds)),
    }


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
    import uvicorn
    from fastapi import FastAPI, Form, Response, UploadFile

    sampler = Sampler(storage, run)
    app = FastAPI()

    def samples(image: UploadFile, seed: int, num_samples: int) -> Response:
        condition = sampler.condition(image.file.read())
        drawn = sampler.draw([(condition, seed, num_samples)])[0]
        return Response(sampler.png(drawn), media_type="image/png")

    samples.__annotations__ = {  # which FastAPI cannot find by name inside a function
        "image": UploadFile,
        "seed": Annotated[int, Form()],
        "num_samples": Annotated[int, Form()],
        "return": Response,
    }
    app.post("/v1/samples")(samples)
    uvicorn.run(app, port=port, log_level="error", access_log=False)


def lit(storage: str, run: str, port: int) -> None:
    """LitServe with its own batching."""
    import litserve

    from benchmarks.endpoint.lit import Api

    api = Api(max_batch_size=BATCH, batch_timeout=0.004, api_path="/v1/samples")
    api.storage, api.run = storage, run
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=port, generate_client_file=False, log_level="error"
    )


def main() -> None:
    """`python -m benchmarks.endpoint.rivals bare|plain|lit STORAGE RUN PORT|SECONDS`"""
    name, storage, run, number = sys.argv[1:]
    if name == "bare":
        bare(storage, run, float(number))
    else:
        {"plain": plain, "lit": lit}[name](storage, run, int(number))


if __name__ == "__main__":
    main()

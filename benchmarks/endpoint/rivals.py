"""What the endpoint is measured against: the bare model loop, LitServe, a plain handler."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from aalnet.sampling import draw, from_uint8, noise_for
from benchmarks.endpoint.plain_model import PlainModel
from deploy.endpoint.model import LoadedModel, Loader
from deploy.endpoint.settings import EndpointSettings

BATCH = 8  # conditions: one of each client


def bare(storage: str, run: str, seconds: float) -> None:
    """The model alone, no requests: eager as `aalnet sample` runs it, and as the endpoint runs it.

    Prints images per second in batches of 8 conditions and the milliseconds of one condition,
    for 1 and 8 samples.
    """
    model = PlainModel(storage, run)
    served = Loader(EndpointSettings()).load(model.checkpoint, run)
    source = np.random.default_rng(0)
    size = (model.spec.condition_channels, served.size_px, served.size_px)
    conditions = [source.integers(0, 256, size, np.uint8) for _ in range(BATCH)]
    figures = {str(k): _bare(model, served, conditions, k, seconds) for k in (1, 8)}
    json.dump(figures, sys.stdout)


def _bare(
    model: PlainModel,
    served: LoadedModel,
    conditions: list[NDArray[np.uint8]],
    k: int,
    seconds: float,
) -> dict[str, float]:
    generator, stacked = model.generator, from_uint8(np.stack(conditions))
    noise = torch.cat([noise_for(i, 0, 1, k, model.noise_size) for i in range(BATCH)])
    labels = torch.zeros(BATCH, dtype=torch.int64)
    label = model.spec.labels[0]
    queries = [served.query(c, label, k, i) for i, c in enumerate(conditions)]

    def eager(count: int) -> Callable[[], object]:
        return lambda: draw(generator, stacked[:count], labels[:count], noise[:count])

    return {
        "eager_images_per_s": BATCH * k / statistics.mean(_times_s(eager(BATCH), seconds)),
        "served_images_per_s": BATCH
        * k
        / statistics.mean(_times_s(lambda: served.draw(queries), seconds)),
        "eager_one_ms": 1e3 * statistics.median(_times_s(eager(1), seconds)),
        "served_one_ms": 1e3
        * statistics.median(_times_s(lambda: served.draw(queries[:1]), seconds)),
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

    model = PlainModel(storage, run)
    app = FastAPI()

    def samples(image: UploadFile, seed: int, num_samples: int) -> Response:
        condition = model.condition(image.file.read())
        drawn = model.draw([(condition, seed, num_samples)])[0]
        return Response(model.png(drawn), media_type="image/png")

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

"""The endpoint without HTTP: one object that owns the model, the batcher and the rest."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from deploy.endpoint.batcher import Arrival, Batcher, QueryResult
from deploy.endpoint.encoding import MEDIA_TYPES, SMALL_PIXELS, encode
from deploy.endpoint.follow import ModelSource
from deploy.endpoint.idempotency import Answer
from deploy.endpoint.images import decode_condition, read_header
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import LoadedModel
from deploy.endpoint.request_body import SampleRequest
from deploy.endpoint.security import Keys
from deploy.endpoint.settings import EndpointSettings

SWITCH_S = 0.0001  # the model's thread gets Python's lock this soon, not after 5 ms
RANDOM_SEEDS = 2**31  # short enough to be read out
PICTURE_THREADS = 2  # large pictures at once: each may take some hundred MB while it is decoded


class Service:
    """What a request needs: admission -> decoded -> batched -> drawn -> encoded."""

    def __init__(self, source: ModelSource, settings: EndpointSettings, keys: Keys) -> None:
        """Load the model. Raises CheckpointError, StoreError or NonFiniteError."""
        torch.set_num_threads(settings.threads)
        sys.setswitchinterval(SWITCH_S)
        self.settings, self.keys = settings, keys
        self.metrics = Metrics()
        self.metrics.queue_limit.set(settings.queue_samples)
        self.batcher = Batcher(settings, self.metrics)
        self.holder, self._follower = source.open(settings, self.metrics)
        self.ready = False
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, "pictures")

    def start(self) -> None:
        """Start the threads, and be ready."""
        self.batcher.start()
        if self._follower is not None:
            self._follower.start()
        self.ready = True

    def close(self) -> None:
        """Finish what is queued; end the threads."""
        self.ready = False
        if self._follower is not None:
            self._follower.close()
        self.batcher.close(self.settings.drain_s)
        self._pool.shutdown(cancel_futures=True)

    @property
    def model(self) -> LoadedModel:
        """What new requests get."""
        return self.holder.current

    async def sample(self, request: SampleRequest, arrival: Arrival) -> Answer:
        """Answer one request.

        Raises:
            HttpError: the image or the label will not do, or the queue is full.
        """
        started_at_s = time.perf_counter()
        model = self.model  # one model from here to the answer, whatever is promoted meanwhile
        seed = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
        header = read_header(request.image, self.settings.image_side_px)
        decoding = (request.image, model.spec, model.size_px)
        if header.small:
            condition = decode_condition(*decoding)
        else:
            arrival.end()
            loop = asyncio.get_running_loop()
            condition = await loop.run_in_executor(self._pool, decode_condition, *decoding)
        query = model.query(
            condition, request.label, request.num_samples, seed, request.temperature
        )
        result = await self.batcher.draw(model, query, arrival)
        self.metrics.queue_seconds.observe(result.queue_s)
        self.metrics.model_seconds.observe(result.model_s)
        original = (header.width_px, header.height_px)
        resized = original != (model.size_px, model.size_px)
        facts: dict[str, Any] = {
            "model": model.name,
            "checkpoint": model.digest,
            "execution": result.execution,
            "label": request.label,
            "seed": seed,
            "num_samples": request.num_samples,
            "temperature": request.temperature,
            "size_px": model.size_px,
            "resized_from": list(original) if resized else None,
        }
        body = await self._encode(result, request, facts)
        return Answer(body, MEDIA_TYPES[request.format], _headers(facts, result, started_at_s))

    async def _encode(
        self, result: QueryResult, request: SampleRequest, facts: dict[str, Any]
    ) -> bytes:
        if result.pixels[..., 0].size <= SMALL_PIXELS:
            return encode(result.pixels, request.format, facts)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, encode, result.pixels, request.format, facts)


def _headers(facts: dict[str, Any], result: QueryResult, started_at_s: float) -> dict[str, str]:
    """Model, checkpoint, seed and timing, for answers that are pictures too."""
    total_s = time.perf_counter() - started_at_s
    parts = {"queue": result.queue_s, "model": result.model_s, "total": total_s}
    headers = {
        "x-model": facts["model"],
        "x-checkpoint": facts["checkpoint"],
        "x-aalnet-execution": facts["execution"],
        "x-seed": str(facts["seed"]),
        "x-batch-samples": str(result.batch_samples),
        "server-timing": ", ".join(f"{name};dur={s * 1e3:.2f}" for name, s in parts.items()),
        "cache-control": "no-store",
    }
    if (original := facts["resized_from"]) is not None:
        side = facts["size_px"]
        headers["x-resized"] = f"{original[0]}x{original[1]} to {side}x{side}"
    return headers

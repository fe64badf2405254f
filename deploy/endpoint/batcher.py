"""Micro-batching: requests of many clients run together, in one thread, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deploy.endpoint.errors import HttpError
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import LoadedModel, SampleQuery
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class QueryResult:
    """What came of a query, and how long it took."""

    pixels: NDArray[np.uint8]  # [k, S, S, 3]
    queue_s: float
    model_s: float  # of the whole batch it was in
    batch_samples: int
    execution: str


@dataclass(eq=False)
class QueuedQuery:
    """A query on its way, bound to the model that it was admitted with."""

    model: LoadedModel
    query: SampleQuery
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[QueryResult]
    queued_at_s: float = field(default_factory=time.perf_counter)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.query.noise)


class Arrival:
    """A request being read; it ends when its query is queued or will never be."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher: Batcher | None = batcher

    def end(self) -> None:
        """Hold back no batch any more; again: nothing."""
        if self._batcher is not None:
            self._batcher.arrived()
            self._batcher = None


class Batcher:
    """A bounded queue and the thread that empties it, a batch at a time.

    A batch holds queries of one model: whoever swaps the model never mixes a batch. A batch that
    is not full waits a little for requests that are being read, and for no others; once half of
    those at hand are queued it runs, and the others are read meanwhile.
    """

    def __init__(self, settings: EndpointSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._arriving = 0
        self.queued_samples = 0
        self.sample_s = 0.001  # seconds per sample, a moving average: what Retry-After is made of
        self._queue: deque[QueuedQuery] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def full(self) -> bool:
        """Is every further request refused?"""
        return self.queued_samples >= self.settings.queue_samples

    @property
    def wait_s(self) -> float:
        """How long what is queued will take."""
        return self.queued_samples * self.sample_s

    def arrive(self) -> Arrival:
        """Say that a request is being read."""
        with self._changed:
            self._arriving += 1
        return Arrival(self)

    def arrived(self) -> None:
        """Say that it is queued, refused, or slow."""
        with self._changed:
            self._arriving -= 1
            self._wake()

    async def draw(self, model: LoadedModel, query: SampleQuery, arrival: Arrival) -> QueryResult:
        """Queue a query and wait for it; when the caller is cancelled it leaves the queue.

        Raises:
            HttpError: the queue is full, or the model drew what is not finite.
        """
        loop = asyncio.get_running_loop()
        entry = QueuedQuery(model, query, loop, loop.create_future())
        with self._changed:
            if self.full:
                raise self.refusal()
            self._queue.append(entry)
            self._count(entry.samples)
            if len(self._queue) == 1:
                self._changed.notify()
        arrival.end()
        try:
            return await entry.future
        finally:
            if entry.future.cancelled():
                self._forget(entry)

    def refusal(self) -> HttpError:
        """What a request gets that finds the queue full."""
        return HttpError(
            429, "queue", "too many requests wait; try again later", retry_after_s=self.wait_s
        )

    def _wake(self) -> None:
        """Wake the thread if it has something to do: each time costs both threads their pace."""
        if self._queue and not self._incomplete:
            self._changed.notify()

    @property
    def _incomplete(self) -> bool:
        """Is it better to wait for requests that are being read than to run what is queued?"""
        full = self.queued_samples >= self._queue[0].model.executor.batch_samples
        return not full and self._arriving > len(self._queue)

    def _forget(self, entry: QueuedQuery) -> None:
        with self._changed:
            if entry in self._queue:
                self._queue.remove(entry)
                self._count(-entry.samples)

    def _count(self, samples: int) -> None:
        self.queued_samples += samples
        self.metrics.queued.set(self.queued_samples)

    def _work(self) -> None:
        while entries := self._next_batch():
            started_at_s = time.perf_counter()
            try:
                results = self._run(entries, started_at_s)
            except Exception:  # whatever it was, it must fail these requests, not the thread
                log.exception("a batch of %d requests failed", len(entries))
                results = [HttpError(500, "model", "the model failed") for _ in entries]
            _deliver(entries, results)

    def _next_batch(self) -> list[QueuedQuery]:
        """The oldest queries of one model that fit a batch; empty when closed and done."""
        with self._changed:
            while self._queue or not self._closing:
                if not self._queue:
                    self._changed.wait()
                    continue
                self._wait_for_others()
                if batch := self._take():  # else all have hung up meanwhile
                    return batch
            return []

    def _wait_for_others(self) -> None:
        wait_until_s = self._queue[0].queued_at_s + self.settings.batch_wait_s
        while self._queue and self._incomplete:
            left_s = wait_until_s - time.perf_counter()
            if left_s <= 0 or not self._changed.wait(left_s):
                break

    def _take(self) -> list[QueuedQuery]:
        batch: list[QueuedQuery] = []
        samples = 0
        while self._queue and (not batch or self._queue[0].model is batch[0].model):
            entry = self._queue[0]
            if batch and samples + entry.samples > entry.model.executor.batch_samples:
                break
            batch.append(self._queue.popleft())
            samples += entry.samples
        self._count(-samples)
        return batch

    def _run(
        self, entries: Sequence[QueuedQuery], started_at_s: float
    ) -> list[QueryResult | HttpError]:
        model = entries[0].model
        outputs = model.draw([entry.query for entry in entries])
        model_s = time.perf_counter() - started_at_s
        samples = sum(entry.samples for entry in entries)
        self.sample_s += 0.1 * (model_s / samples - self.sample_s)
        self.metrics.batch_samples.observe(samples)
        self.metrics.batch_fill.observe(min(samples / model.executor.batch_samples, 1.0))
        self.metrics.samples.inc(samples)
        results: list[QueryResult | HttpError] = []
        for entry, output in zip(entries, outputs, strict=True):
            if output.finite.all():
                queue_s = started_at_s - entry.queued_at_s
                results.append(
                    QueryResult(output.pixels, queue_s, model_s, samples, model.executor.name)
                )
            else:
                log.error("%s drew a picture that is not finite", model.title)
                results.append(HttpError(500, "model", "the model failed"))
        return results


def _deliver(entries: Sequence[QueuedQuery], results: Sequence[QueryResult | HttpError]) -> None:
    """Give every result to its waiter, in the loop that it waits in."""

    def resolve(pairs: Sequence[tuple[QueuedQuery, QueryResult | HttpError]]) -> None:
        for entry, result in pairs:
            if entry.future.done():  # its client has gone
                continue
            if isinstance(result, HttpError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)

    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[QueuedQuery, QueryResult | HttpError]]] = {}
    for entry, result in zip(entries, results, strict=True):
        by_loop.setdefault(entry.loop, []).append((entry, result))
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, pairs)

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

from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import Drawing, LoadedModel
from deploy.endpoint.refusals import Refused
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class Drawn:
    """What came of a drawing, and how long it took."""

    pixels: NDArray[np.uint8]  # [k, S, S, 3]
    queue_s: float
    model_s: float  # of the whole batch it was in
    batch_samples: int


@dataclass(eq=False)
class Job:
    """A drawing on its way, bound to the model that it was admitted with."""

    model: LoadedModel
    drawing: Drawing
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Drawn]
    queued_at_s: float = field(default_factory=time.perf_counter)

    @property
    def samples(self) -> int:
        return len(self.drawing.noise)


class Arrival:
    """A request that is being read; it ends when its job is queued, or when there will be none."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher: Batcher | None = batcher

    def end(self) -> None:
        if self._batcher is not None:
            self._batcher.arrived()
            self._batcher = None


class Batcher:
    """A bounded queue and the thread that empties it, a batch at a time.

    A batch holds jobs of one model: whoever swaps the model never mixes a batch. A batch that
    is not full waits a little for requests that are being read, and for no others; once half of
    those at hand are queued it runs, and the others are read meanwhile.
    """

    def __init__(self, settings: EndpointSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._arriving = 0
        self.queued_samples = 0
        self.sample_s = 0.001  # seconds per sample, a moving average: what Retry-After is made of
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def full(self) -> bool:
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

    async def draw(self, model: LoadedModel, drawing: Drawing, arrival: Arrival) -> Drawn:
        """Queue a drawing and wait for it; when the caller is cancelled it leaves the queue.

        Raises:
            Refused: the queue is full, or the model drew what is not finite.
        """
        loop = asyncio.get_running_loop()
        job = Job(model, drawing, loop, loop.create_future())
        with self._changed:
            if self.full:
                raise self.refusal()
            self._jobs.append(job)
            self._count(job.samples)
            if len(self._jobs) == 1:
                self._changed.notify()
        arrival.end()
        try:
            return await job.future
        finally:
            if job.future.cancelled():
                self._forget(job)

    def refusal(self) -> Refused:
        return Refused(
            429, "queue", "too many requests wait; try again later", retry_after_s=self.wait_s
        )

    def _wake(self) -> None:
        """Wake the thread if it has something to do: each time costs both threads their pace."""
        if self._jobs and not self._incomplete:
            self._changed.notify()

    @property
    def _incomplete(self) -> bool:
        """Is it better to wait for requests that are being read than to run what is queued?"""
        plan = self._jobs[0].model.runner.plan
        if self._arriving == 0 or self.queued_samples >= plan.batch_samples:
            return False
        return self._arriving > len(self._jobs) or self.queued_samples < plan.fewest.rows

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._count(-job.samples)

    def _count(self, samples: int) -> None:
        self.queued_samples += samples
        self.metrics.queued.set(self.queued_samples)

    def _work(self) -> None:
        while jobs := self._next_batch():
            started_at_s = time.perf_counter()
            try:
                results = self._run(jobs, started_at_s)
            except Exception:  # whatever it was, it must fail these requests, not the thread
                log.exception("a batch of %d requests failed", len(jobs))
                results = [Refused(500, "model", "the model failed") for _ in jobs]
            _deliver(jobs, results)

    def _next_batch(self) -> list[Job]:
        """The oldest jobs of one model that fit a batch; empty when closed and done."""
        with self._changed:
            while self._jobs or not self._closing:
                if not self._jobs:
                    self._changed.wait()
                    continue
                self._wait_for_others()
                if taken := self._take():  # else all have hung up meanwhile
                    return taken
            return []

    def _wait_for_others(self) -> None:
        wait_until_s = self._jobs[0].queued_at_s + self.settings.batch_wait_s
        while self._jobs and self._incomplete:
            left_s = wait_until_s - time.perf_counter()
            if left_s <= 0 or not self._changed.wait(left_s):
                break

    def _take(self) -> list[Job]:
        taken: list[Job] = []
        samples = 0
        while self._jobs and (not taken or self._jobs[0].model is taken[0].model):
            job = self._jobs[0]
            if taken and samples + job.samples > job.model.runner.plan.batch_samples:
                break
            taken.append(self._jobs.popleft())
            samples += job.samples
        self._count(-samples)
        return taken

    def _run(self, jobs: Sequence[Job], started_at_s: float) -> list[Drawn | Refused]:
        model = jobs[0].model
        drawn = model.draw([job.drawing for job in jobs])
        model_s = time.perf_counter() - started_at_s
        samples = sum(job.samples for job in jobs)
        self.sample_s += 0.1 * (model_s / samples - self.sample_s)
        self.metrics.batch_samples.observe(samples)
        self.metrics.batch_fill.observe(min(samples / model.runner.plan.batch_samples, 1.0))
        self.metrics.samples.inc(samples)
        results: list[Drawn | Refused] = []
        for job, found in zip(jobs, drawn, strict=True):
            if found.finite.all():
                queue_s = started_at_s - job.queued_at_s
                results.append(Drawn(found.pixels, queue_s, model_s, samples))
            else:
                log.error("%s drew a picture that is not finite", model.title)
                results.append(Refused(500, "model", "the model failed"))
        return results


def _deliver(jobs: Sequence[Job], results: Sequence[Drawn | Refused]) -> None:
    """Give every result to its waiter, in the loop that it waits in."""

    def resolve(pairs: Sequence[tuple[Job, Drawn | Refused]]) -> None:
        for job, result in pairs:
            if job.future.done():  # its client has gone
                continue
            if isinstance(result, Refused):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Drawn | Refused]]] = {}
    for job, result in zip(jobs, results, strict=True):
        by_loop.setdefault(job.loop, []).append((job, result))
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, pairs)

"""How the endpoint's batcher queues requests: batches of one model, waits, refusals, failures."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aalnet.sampling import to_uint8
from deploy.endpoint.batcher import Batcher, QueryResult
from deploy.endpoint.errors import HttpError
from deploy.endpoint.execution import ModelOutput
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import SampleQuery
from deploy.endpoint.settings import EndpointSettings


class SlowModel:
    """Stands for a LoadedModel: remembers its batches, and draws when told to."""

    title = "slow"

    def __init__(self, limit: int = 4) -> None:
        self.batches: list[int] = []
        self.executor = SimpleNamespace(batch_samples=limit, name="slow")
        self.value = 0.0

    def draw(self, queries: list[SampleQuery]) -> list[ModelOutput]:
        self.batches.append(len(queries))
        return [samples_of(len(query.noise), self.value) for query in queries]


def samples_of(count: int, value: float) -> ModelOutput:
    images = np.full((count, 3, 2, 2), value, np.float32)
    pixels = to_uint8(torch.from_numpy(np.nan_to_num(images)))
    return ModelOutput(images, pixels, np.isfinite(images[:, 0, 0, 0]))


def query_of(samples: int) -> SampleQuery:
    return SampleQuery(np.zeros((3, 2, 2), np.uint8), 0, np.zeros((samples, 4), np.float32))


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(EndpointSettings(queue_samples=6, batch_wait_s=0.05), Metrics())
    yield made
    made.close(5)


async def drawn_by(batcher: Batcher, *jobs: tuple[Any, int]) -> list[QueryResult]:
    """Queue every job before the thread starts."""
    arrivals = [batcher.arrive() for _ in jobs]
    tasks = [
        asyncio.ensure_future(batcher.draw(model, query_of(samples), arrival))
        for (model, samples), arrival in zip(jobs, arrivals, strict=True)
    ]
    await asyncio.sleep(0)
    batcher.start()
    return list(await asyncio.gather(*tasks))


def test_jobs_of_one_model_share_a_batch_up_to_its_size(batcher: Batcher) -> None:
    model = SlowModel(limit=4)
    asyncio.run(drawn_by(batcher, (model, 1), (model, 2), (model, 1), (model, 1)))
    assert model.batches == [3, 1]
    assert batcher.queued_samples == 0


def test_no_batch_mixes_models(batcher: Batcher) -> None:
    old, new = SlowModel(), SlowModel()
    new.value = 1.0
    jobs = ((old, 1), (new, 1), (new, 1), (old, 1))
    drawn = asyncio.run(drawn_by(batcher, *jobs))
    assert (old.batches, new.batches) == ([1, 1], [2])
    assert [int(one.pixels.max()) for one in drawn] == [128, 255, 255, 128]


def test_a_full_queue_refuses_with_the_time_to_wait(batcher: Batcher) -> None:
    async def refusal() -> HttpError:
        model: Any = SlowModel()
        task = asyncio.ensure_future(batcher.draw(model, query_of(6), batcher.arrive()))
        await asyncio.sleep(0)
        with pytest.raises(HttpError) as refused:
            await batcher.draw(model, query_of(1), batcher.arrive())
        task.cancel()
        return refused.value

    refused = asyncio.run(refusal())
    assert refused.status == 429
    assert int(refused.headers()["retry-after"]) >= 1
    batcher.start()


def test_a_client_that_hangs_up_frees_its_place(batcher: Batcher) -> None:
    model = SlowModel()

    async def hang_up() -> None:
        gone: Any = model
        task = asyncio.ensure_future(batcher.draw(gone, query_of(5), batcher.arrive()))
        await asyncio.sleep(0)
        assert batcher.queued_samples == 5
        task.cancel()
        await asyncio.sleep(0)
        assert batcher.queued_samples == 0
        await drawn_by(batcher, (model, 1))

    asyncio.run(hang_up())
    assert model.batches == [1]


def test_the_thread_outlives_a_client_that_hangs_up_while_it_waits_for_others() -> None:
    model: Any = SlowModel()
    batcher = Batcher(EndpointSettings(batch_wait_s=1.0), Metrics())

    async def hang_up() -> QueryResult:
        being_read, also = batcher.arrive(), batcher.arrive()
        batcher.start()
        task = asyncio.ensure_future(batcher.draw(model, query_of(1), batcher.arrive()))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0)
        also.end()
        return await batcher.draw(model, query_of(2), being_read)

    assert asyncio.run(hang_up()).batch_samples == 2
    assert model.batches == [1]
    batcher.close(5)


def test_a_batch_runs_once_half_of_those_at_hand_are_queued(batcher: Batcher) -> None:
    model: Any = SlowModel()

    async def half() -> list[int]:
        arrivals = [batcher.arrive() for _ in range(4)]
        batcher.start()
        first = [
            asyncio.ensure_future(batcher.draw(model, query_of(1), arrival))
            for arrival in arrivals[:2]
        ]
        found = [(await task).batch_samples for task in first]
        for arrival in arrivals[2:]:
            arrival.end()
        return found

    assert asyncio.run(half()) == [2, 2]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), None])
def test_a_failing_batch_fails_its_requests_only(
    batcher: Batcher, failure: Exception | None
) -> None:
    class Failing(SlowModel):
        def draw(self, queries: list[SampleQuery]) -> list[ModelOutput]:
            if failure is not None:
                raise failure
            return [samples_of(1, float("nan"))]

    async def both() -> QueryResult:
        bad: Any = Failing()
        arrival = batcher.arrive()
        task = asyncio.ensure_future(batcher.draw(bad, query_of(1), arrival))
        await asyncio.sleep(0)
        (drawn,) = await drawn_by(batcher, (SlowModel(), 1))
        with pytest.raises(HttpError) as refused:
            await task
        assert refused.value.status == 500
        return drawn

    assert asyncio.run(both()).pixels.shape == (1, 2, 2, 3)


def test_a_batch_waits_for_requests_that_are_being_read(batcher: Batcher) -> None:
    model: Any = SlowModel()

    async def late() -> None:
        first, second, third = (batcher.arrive() for _ in range(3))
        batcher.start()
        one = asyncio.ensure_future(batcher.draw(model, query_of(1), first))
        await asyncio.sleep(0.01)
        await asyncio.gather(one, batcher.draw(model, query_of(1), second))
        third.end()

    asyncio.run(late())
    assert model.batches == [2]

"""What the endpoint draws: the same bytes in every batch, no mixed batch, model swaps."""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from aalnet.errors import CheckpointError, NonFiniteError
from aalnet.networks import DataSpec, Generator
from aalnet.sampling import draw, from_uint8, to_uint8
from cluster.runs.promotions import promote, roll_back
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from deploy.endpoint.batcher import Batcher, QueryResult
from deploy.endpoint.errors import HttpError
from deploy.endpoint.execution import (
    Executor,
    Graph,
    InferenceModule,
    ModelInput,
    ModelOutput,
    build_graph,
    probe_input,
)
from deploy.endpoint.follow import ModelFollower, ModelSource
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import LoadedModel, Loader, SampleQuery
from deploy.endpoint.service import Service
from deploy.endpoint.settings import EndpointSettings
from tests.support.endpoint_models import (
    LABELS,
    QUICK,
    SPEC,
    client_of,
    corrupt,
    form,
    make_checkpoint,
    make_nan,
    png_of,
    remembered_graph,
    service_of,
)
from tests.support.tiny_runs import noise_picture, tiny_settings

CPU = torch.device("cpu")
WHOLE = EndpointSettings(batch_samples=32)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.model.build_graph", remembered_graph)


def generator_of(spec: DataSpec = SPEC, **overrides: Any) -> Generator:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    torch.manual_seed(0)
    generator = Generator(tiny_settings(Path("data"), dotted), spec).eval().requires_grad_(False)
    torch.nn.init.normal_(generator.output.weight, std=0.2)
    return generator


def random_queries(model: LoadedModel, count: int, seed: int) -> list[SampleQuery]:
    """Requests of 1 to 9 samples, some for the same condition."""
    numbers = np.random.default_rng(seed)
    conditions = [noise_picture(seed + i).transpose(2, 0, 1) for i in range(count)]
    return [
        model.query(
            conditions[int(numbers.integers(0, i + 1))],
            LABELS[int(numbers.integers(0, 3))],
            int(numbers.integers(1, 10)),
            seed=int(numbers.integers(0, 2**53)),
        )
        for i in range(count)
    ]


# The execution


def executor_of(generator: Generator, settings: EndpointSettings = QUICK) -> Executor:
    graph = remembered_graph(generator, SPEC, 32, settings)
    return Executor(generator, SPEC, 32, settings, graph)


@pytest.mark.parametrize("blocks", ["resnet", "densenet", "inception"])
@pytest.mark.parametrize("start", [True, False])
def test_it_agrees_with_the_generator_in_batches_of_every_size(blocks: str, start: bool) -> None:
    generator = generator_of(network__blocks=blocks, network__start_from_condition=start)
    executor = executor_of(generator)
    assert executor.name.startswith("onnxruntime-")
    assert not executor.padded
    inputs = probe_input(generator, SPEC, 32, 8)
    label, noise = torch.from_numpy(inputs.label), torch.from_numpy(inputs.noise)
    expected = draw(generator, from_uint8(inputs.condition), label, noise[:, None])[:, 0]
    whole = executor.run(inputs)
    assert whole.images.shape == expected.shape
    assert float((torch.from_numpy(whole.images) - expected).abs().max()) <= 1e-3
    assert np.array_equal(whole.pixels, to_uint8(torch.from_numpy(whole.images)))
    assert whole.finite.all()
    for rows in range(1, 8):
        part = ModelInput(*(array[8 - rows :] for array in inputs.arrays[:1]), np.arange(rows),
                          inputs.label[8 - rows :], inputs.noise[8 - rows :])  # fmt: skip
        assert np.array_equal(executor.run(part).images, whole.images[8 - rows :])


def test_checkpoints_of_one_architecture_share_a_graph_but_no_weight() -> None:
    one, other = generator_of(), generator_of()
    torch.nn.init.normal_(other.stem.weight, std=0.5)
    inputs = probe_input(one, SPEC, 32, 2)
    for generator in (one, other, one):
        label, noise = torch.from_numpy(inputs.label), torch.from_numpy(inputs.noise)
        expected = draw(generator, from_uint8(inputs.condition), label, noise[:, None])[:, 0]
        images = executor_of(generator).run(inputs).images
        assert float((torch.from_numpy(images) - expected).abs().max()) <= 1e-3


def test_where_bits_depend_on_the_batch_every_batch_has_one_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = InferenceModule.forward

    def by_size(self: InferenceModule, *inputs: torch.Tensor) -> Any:
        images, pixels, finite = real(self, *inputs)
        return images + 1e-6 * len(images), pixels, finite

    monkeypatch.setattr(InferenceModule, "forward", by_size)
    generator = generator_of()
    executor = Executor(generator, SPEC, 32, QUICK, Graph(None, 8))
    assert executor.name.startswith("torch-")
    assert executor.name.endswith("/batch-8")
    inputs = probe_input(generator, SPEC, 32, 1)
    both = probe_input(generator, SPEC, 32, 2)
    alone, beside = executor.run(inputs), executor.run(both)
    assert alone.images.shape == (1, 3, 32, 32)
    assert beside.images.shape == (2, 3, 32, 32)
    first = ModelInput(*(array[:1] for array in both.arrays))
    assert np.array_equal(executor.run(first).images, beside.images[:1])


def test_slow_models_run_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.execution.BATCH_FLOP", {"cpu": 1.0})
    assert build_graph(generator_of(), SPEC, 32, QUICK).batch_samples == 1


def test_what_is_not_finite_is_told_by_row() -> None:
    generator = generator_of()
    inputs = probe_input(generator, SPEC, 32, 3)
    inputs.noise[1] = np.inf
    assert executor_of(generator).run(inputs).finite.tolist() == [True, False, True]


# The same request, the same bytes


@pytest.mark.parametrize("seed", range(4))
def test_bits_do_not_depend_on_the_batch(store: FolderStore, one_export: None, seed: int) -> None:
    model = Loader(WHOLE).load(make_checkpoint(store, "tiny"), "tiny")
    queries = random_queries(model, 9, seed)
    together = model.draw(queries)
    for query, drawn in zip(queries, together, strict=True):
        (alone,) = model.draw([query])
        assert np.array_equal(alone.images, drawn.images)
    for query, drawn in zip(queries[::-1], model.draw(queries[::-1]), strict=True):
        (alone,) = model.draw([query])
        assert np.array_equal(alone.images, drawn.images)


def test_conditions_are_encoded_once(store: FolderStore, one_export: None) -> None:
    model = Loader(QUICK).load(make_checkpoint(store, "tiny"), "tiny")
    seen: list[int] = []
    real = model.executor.run

    def counted(batch: ModelInput) -> ModelOutput:
        seen.append(len(batch.condition))
        return real(batch)

    model.executor.run = counted  # type: ignore[method-assign]
    one, other = np.zeros((3, 32, 32), np.uint8), np.ones((3, 32, 32), np.uint8)
    model.draw([model.query(c, "a", 2, i) for i, c in enumerate([one, other, one.copy()])])
    assert seen == [2]


def test_more_samples_than_a_batch_are_drawn_in_several(store: FolderStore) -> None:
    model = Loader(QUICK).load(make_checkpoint(store, "tiny"), "tiny")
    condition = np.zeros((3, 32, 32), np.uint8)
    (many,) = model.draw([model.query(condition, "b", 20, 3)])
    (few,) = model.draw([model.query(condition, "b", 3, 3)])
    assert many.images.shape == (20, 3, 32, 32)
    assert np.array_equal(many.images[:3], few.images)


def test_the_same_bytes_alone_and_among_others(store: FolderStore, one_export: None) -> None:
    make_checkpoint(store, "tiny")
    asked = form(png_of(1), num_samples=3, seed=11)

    async def answers() -> list[bytes]:
        async with client_of(service_of(store, settings=WHOLE)) as (client, application):

            async def post(request: dict[str, Any]) -> httpx.Response:
                return (await client.post("/v1/samples", **request)).raise_for_status()

            found = [(await post(asked)).content]
            for width in (3, 12):
                crowd = [
                    form(png_of(i), num_samples=1 + i % 7, seed=i, label="b") for i in range(width)
                ]
                crowd.insert(width // 2, asked)
                samples = sum(int(request["data"]["num_samples"]) for request in crowd)
                with held(application.service, samples) as runs:
                    first = asyncio.ensure_future(post(form(num_samples=1)))
                    await asyncio.to_thread(runs.wait, 30)
                    replies = await asyncio.gather(*(post(request) for request in crowd))
                    await first
                assert int(replies[width // 2].headers["x-batch-samples"]) > 3
                found.append(replies[width // 2].content)
            return found

    assert len(set(asyncio.run(answers()))) == 1


@contextlib.contextmanager
def held(service: Service, samples: int) -> Iterator[threading.Event]:
    """The next batch lasts until so many samples wait for the one after; the event says it runs."""
    model, batcher, runs = service.model, service.batcher, threading.Event()
    real, until_s = model.draw, time.monotonic() + 30

    def draw(queries: Sequence[SampleQuery]) -> list[ModelOutput]:
        model.draw = real  # type: ignore[method-assign]
        runs.set()
        while batcher.queued_samples < samples and time.monotonic() < until_s:
            time.sleep(0.001)
        return real(queries)

    model.draw = draw  # type: ignore[method-assign]
    yield runs


# The batcher


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


# Promotions


class Followed:
    """A follower that looks when told to."""

    def __init__(self, store: FolderStore, name: str = "m") -> None:
        self.metrics = Metrics()
        source = ModelSource(store, name, promoted=True)
        self.holder, follower = source.open(QUICK, self.metrics)
        assert follower is not None
        self.follower: ModelFollower = follower

    @property
    def serving(self) -> tuple[str, int]:
        return self.holder.current.run, self.holder.current.images

    def swaps(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "aalnet_endpoint_swaps_total", {"outcome": outcome}
        )
        assert value is not None
        return value


@pytest.fixture
def followed(store: FolderStore, one_export: None) -> Followed:
    promote(store, make_checkpoint(store, "first", 10), "m")
    return Followed(store)


def test_a_promotion_is_swapped_in_and_back(store: FolderStore, followed: Followed) -> None:
    followed.follower.look()
    assert followed.serving == ("first", 10)
    promote(store, make_checkpoint(store, "second", 20, seed=2), "m")
    followed.follower.look()
    assert followed.serving == ("second", 20)
    roll_back(store, "m")
    followed.follower.look()
    assert followed.serving == ("first", 10)
    assert (followed.swaps("swapped"), followed.swaps("refused")) == (2, 0)


def test_a_model_of_other_labels_and_size_is_swapped_in(
    store: FolderStore, followed: Followed
) -> None:
    other = DataSpec(("x", "y"), 1, 3)
    found = make_checkpoint(store, "other", spec=other, overrides={"data.size_px": 64})
    promote(store, found, "m")
    followed.follower.look()
    assert followed.holder.current.spec == other
    assert followed.holder.current.size_px == 64


def promote_corrupted(store: FolderStore) -> None:
    found = make_checkpoint(store, "bad", 5)
    promote(store, found, "m")
    corrupt(found)


def promote_nan(store: FolderStore) -> None:
    promote(store, make_checkpoint(store, "bad", 5, change=make_nan), "m")


def promote_and_remove(store: FolderStore) -> None:
    found = make_checkpoint(store, "bad", 5)
    promote(store, found, "m")
    store.delete(found.key("MANIFEST.json"))


def damage_the_name(store: FolderStore) -> None:
    store.write("models/m.json", b'{"promotions": [')


@pytest.mark.parametrize(
    "spoil", [promote_corrupted, promote_nan, promote_and_remove, damage_the_name]
)
def test_a_bad_promotion_is_refused_once_and_the_old_model_stays(
    store: FolderStore, followed: Followed, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    spoil(store)
    for _ in range(3):
        followed.follower.look()
    assert followed.serving == ("first", 10)
    assert (followed.swaps("swapped"), followed.swaps("refused")) == (0, 1)
    assert caplog.text.count("refused, first@10") == 1
    if spoil is damage_the_name:
        store.delete("models/m.json")
    promote(store, make_checkpoint(store, "good", 30), "m")
    followed.follower.look()
    assert followed.serving == ("good", 30)


def test_storage_that_fails_for_now_is_asked_again(
    store: FolderStore, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, make_checkpoint(store, "second", 20), "m")

    def fail(*_: Any) -> bytes:
        raise StoreError("the server does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(FolderStore, "read", fail)
        followed.follower.look()
        assert followed.serving == ("first", 10)
    followed.follower.look()
    assert followed.serving == ("second", 20)
    assert followed.swaps("refused") == 0


@pytest.mark.parametrize(("change", "error"), [(make_nan, NonFiniteError)])
def test_a_bad_checkpoint_is_not_served_at_the_start(
    store: FolderStore, one_export: None, change: Any, error: type[Exception]
) -> None:
    make_checkpoint(store, "bad", change=change)
    with pytest.raises(error, match="not finite"):
        service_of(store, "bad")


def test_a_name_that_was_never_promoted(store: FolderStore) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        service_of(store, "nobody", promoted=True)


def test_the_digest_served_is_the_manifest_s(store: FolderStore, one_export: None) -> None:
    found = make_checkpoint(store, "tiny")
    model = Loader(QUICK).load(found, "tiny")
    assert model.digest == found.manifest().digest
    assert len(model.digest) == len(hashlib.sha256().hexdigest())

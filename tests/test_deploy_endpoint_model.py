"""What the endpoint draws: the generator's own samples, the same bytes in every batch."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from aalnet.networks import DataSpec, Generator
from aalnet.sampling import draw, from_uint8, to_uint8
from cluster.storage.folder import FolderStore
from deploy.endpoint.execution import (
    Executor,
    Graph,
    InferenceModule,
    ModelInput,
    ModelOutput,
    build_graph,
    probe_input,
)
from deploy.endpoint.model import LoadedModel, Loader, SampleQuery
from deploy.endpoint.service import Service
from deploy.endpoint.settings import EndpointSettings
from tests.support.endpoint_models import (
    LABELS,
    QUICK,
    SPEC,
    client_of,
    form,
    make_checkpoint,
    png_of,
    remembered_graph,
    service_of,
)
from tests.support.tiny_runs import noise_picture, tiny_settings

WHOLE = EndpointSettings(batch_samples=32)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.model.build_graph", remembered_graph)


# The execution


def generator_of(spec: DataSpec = SPEC, **overrides: Any) -> Generator:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    torch.manual_seed(0)
    generator = Generator(tiny_settings(Path("data"), dotted), spec).eval().requires_grad_(False)
    torch.nn.init.normal_(generator.output.weight, std=0.2)
    torch.nn.init.normal_(generator.moments.weight, std=0.3)  # a prior that has learned something
    return generator


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


def test_the_prior_is_exported_too() -> None:
    generator = generator_of()
    inputs = probe_input(generator, SPEC, 32, 4)
    by_prior = executor_of(generator).run(inputs).images
    torch.nn.init.zeros_(generator.moments.weight)
    without = executor_of(generator).run(inputs).images
    assert np.abs(by_prior - without).max(axis=(1, 2, 3)).min() > 1e-2


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

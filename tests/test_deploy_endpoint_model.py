"""What the endpoint draws: the same bytes in every batch, no mixed batch, model swaps."""

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aalnet.errors import CheckpointError, NonFiniteError
from aalnet.networks import DataSpec, Generator
from cluster.models import promote, roll_back
from cluster.store import FolderStore, StoreError
from deploy.endpoint.batcher import Batcher, Drawn
from deploy.endpoint.executions import Execution, Plan, Runner, sizes_up_to
from deploy.endpoint.follow import Follower, Source
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import Drawing, LoadedModel, Loader
from deploy.endpoint.probe import probe
from deploy.endpoint.refusals import Refused
from deploy.endpoint.settings import EndpointSettings
from tests.endpoint_models import (
    LABELS,
    QUICK,
    SPEC,
    client_of,
    corrupt,
    form,
    make_checkpoint,
    make_nan,
    png_of,
    remembered_probe,
    service_of,
)
from tests.tiny_runs import noise_picture, tiny_settings

CPU = torch.device("cpu")
WHOLE = EndpointSettings(batch_samples=32)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.model.probe", remembered_probe)


def generator_of(spec: DataSpec = SPEC, **overrides: Any) -> Generator:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    torch.manual_seed(0)
    generator = Generator(tiny_settings(Path("data"), dotted), spec).eval().requires_grad_(False)
    torch.nn.init.normal_(generator.output.weight, std=0.2)
    return generator


def random_drawings(model: LoadedModel, count: int, seed: int) -> list[Drawing]:
    """Requests of 1 to 9 samples, some for the same condition."""
    numbers = np.random.default_rng(seed)
    conditions = [noise_picture(seed + i).transpose(2, 0, 1) for i in range(count)]
    return [
        model.drawing(
            conditions[int(numbers.integers(0, i + 1))],
            LABELS[int(numbers.integers(0, 3))],
            int(numbers.integers(1, 10)),
            seed=int(numbers.integers(0, 2**53)),
        )
        for i in range(count)
    ]


# The probe


@pytest.mark.parametrize("blocks", ["resnet", "densenet", "inception"])
@pytest.mark.parametrize("start", [True, False])
def test_probe_finds_a_plan_that_agrees(blocks: str, start: bool) -> None:
    overrides = {"network.blocks": blocks, "network.start_from_condition": start}
    generator = Generator(tiny_settings(Path("data"), overrides), SPEC).eval().requires_grad_(False)
    plan = probe(generator, SPEC, 32, QUICK)
    runner = Runner(generator, SPEC, 32, plan)
    condition, owner, label, noise = runner.inputs(5)
    with torch.inference_mode():
        expected = generator(condition, label, noise[:, None])[:, 0].clamp(-1, 1)
    drawn = runner.draw(condition, owner, label, noise)
    assert drawn.shape == expected.shape
    assert float((drawn - expected).abs().max()) <= 1e-3


def test_probe_logs_a_table_of_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aalnet.endpoint"):
        plan = probe(generator_of(), SPEC, 32, QUICK)
    for name in ("eager ", "eager channels_last", "traced ", "traced channels_last"):
        assert f"\n{name}" in caplog.text
    assert f"takes {plan.execution.name}" in caplog.text


def test_probe_refuses_an_execution_that_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Runner.draw

    def wrong(self: Runner, *args: Any) -> Any:
        return real(self, *args) + (0.01 if self.plan.execution.traced else 0.0)

    monkeypatch.setattr(Runner, "draw", wrong)
    with caplog.at_level(logging.INFO, "aalnet.endpoint"):
        plan = probe(generator_of(), SPEC, 32, QUICK)
    assert not plan.execution.traced
    assert caplog.text.count(" differs") == 2


def test_probe_keeps_slow_models_to_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.executions.LONGEST_BATCH_S", 0.0)
    plan = probe(generator_of(), SPEC, 32, QUICK)
    assert plan.sizes == (1,)
    assert plan.floors == (1, 1, 1)


@pytest.mark.parametrize("largest", [1, 5, 32, 50])
def test_sizes_waste_little(largest: int) -> None:
    sizes = sizes_up_to(largest, coarse=False)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    plan = Plan(Execution(), sizes, (1, 1, 1))
    assert all(rows <= plan.size(rows, 0) <= max(1.25 * rows, 1) for rows in range(1, largest + 1))
    assert sizes_up_to(32, coarse=True) == (1, 2, 4, 8, 16, 32)


def test_floors_are_kept_to(one_probe: None) -> None:
    generator = generator_of()
    plan = Plan(Execution(), sizes_up_to(8, coarse=False), (2, 5, 3))
    assert [plan.size(1, stage) for stage in range(3)] == [2, 5, 3]
    runner = Runner(generator, SPEC, 32, plan)
    assert runner.draw(*runner.inputs(1)).shape == (1, 3, 32, 32)


# The same request, the same bytes


@pytest.mark.parametrize("seed", range(4))
def test_bits_do_not_depend_on_the_batch(store: FolderStore, seed: int) -> None:
    model = Loader(WHOLE).load(make_checkpoint(store, "tiny"), "tiny")
    drawings = random_drawings(model, 9, seed)
    together = model.draw(drawings)
    for drawing, drawn in zip(drawings, together, strict=True):
        (alone,) = model.draw([drawing])
        assert torch.equal(alone, drawn)
    for drawing, drawn in zip(drawings[::-1], model.draw(drawings[::-1]), strict=True):
        (alone,) = model.draw([drawing])
        assert torch.equal(alone, drawn)


def test_conditions_are_encoded_once(store: FolderStore, one_probe: None) -> None:
    model = Loader(QUICK).load(make_checkpoint(store, "tiny"), "tiny")
    seen: list[int] = []
    encode = model.runner.encode

    def counted(condition: torch.Tensor) -> Any:
        seen.append(len(condition))
        return encode(condition)

    model.runner.encode = counted  # type: ignore[method-assign]
    one, other = np.zeros((3, 32, 32), np.uint8), np.ones((3, 32, 32), np.uint8)
    model.draw([model.drawing(c, "a", 2, i) for i, c in enumerate([one, other, one.copy()])])
    assert seen == [2]


def test_more_samples_than_a_batch_are_drawn_in_several(store: FolderStore) -> None:
    model = Loader(QUICK).load(make_checkpoint(store, "tiny"), "tiny")
    condition = np.zeros((3, 32, 32), np.uint8)
    (many,) = model.draw([model.drawing(condition, "b", 20, 3)])
    (few,) = model.draw([model.drawing(condition, "b", 3, 3)])
    assert many.shape == (20, 3, 32, 32)
    assert torch.equal(many[:3], few)


def test_the_same_bytes_alone_and_among_others(store: FolderStore) -> None:
    make_checkpoint(store, "tiny")
    asked = form(png_of(1), num_samples=3, seed=11)

    async def answers() -> list[bytes]:
        async with client_of(service_of(store, settings=WHOLE)) as (client, _):
            found = [(await client.post("/v1/samples", **asked)).content]
            for width in (3, 12):
                crowd = [
                    form(png_of(i), num_samples=1 + i % 7, seed=i, label="b") for i in range(width)
                ]
                crowd.insert(width // 2, asked)
                replies = await asyncio.gather(
                    *(client.post("/v1/samples", **request) for request in crowd)
                )
                assert int(replies[width // 2].headers["x-batch-samples"]) > 3
                found.append(replies[width // 2].content)
            return found

    assert len(set(asyncio.run(answers()))) == 1


# The batcher


class SlowModel:
    """Stands for a LoadedModel: remembers its batches, and draws when told to."""

    title = "slow"

    def __init__(self, limit: int = 4) -> None:
        self.batches: list[int] = []
        plan = Plan(Execution(), tuple(range(1, limit + 1)), (1, 1, 1))
        self.runner = type("SomeRunner", (), {"plan": plan})()
        self.value = 0.0

    def draw(self, drawings: list[Drawing]) -> list[torch.Tensor]:
        self.batches.append(len(drawings))
        return [torch.full((len(d.noise), 3, 2, 2), self.value) for d in drawings]


def drawing_of(samples: int) -> Drawing:
    return Drawing(np.zeros((3, 2, 2), np.uint8), 0, torch.zeros(samples, 4))


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(EndpointSettings(queue_samples=6, batch_wait_s=0.05), Metrics())
    yield made
    made.close(5)


async def drawn_by(batcher: Batcher, *jobs: tuple[Any, int]) -> list[Drawn]:
    """Queue every job before the thread starts."""
    arrivals = [batcher.arrive() for _ in jobs]
    tasks = [
        asyncio.ensure_future(batcher.draw(model, drawing_of(samples), arrival))
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
    async def refusal() -> Refused:
        model: Any = SlowModel()
        task = asyncio.ensure_future(batcher.draw(model, drawing_of(6), batcher.arrive()))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await batcher.draw(model, drawing_of(1), batcher.arrive())
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
        task = asyncio.ensure_future(batcher.draw(gone, drawing_of(5), batcher.arrive()))
        await asyncio.sleep(0)
        assert batcher.queued_samples == 5
        task.cancel()
        await asyncio.sleep(0)
        assert batcher.queued_samples == 0
        await drawn_by(batcher, (model, 1))

    asyncio.run(hang_up())
    assert model.batches == [1]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), None])
def test_a_failing_batch_fails_its_requests_only(
    batcher: Batcher, failure: Exception | None
) -> None:
    class Failing(SlowModel):
        def draw(self, drawings: list[Drawing]) -> list[torch.Tensor]:
            if failure is not None:
                raise failure
            return [torch.full((1, 3, 2, 2), float("nan"))]

    async def both() -> Drawn:
        bad: Any = Failing()
        arrival = batcher.arrive()
        task = asyncio.ensure_future(batcher.draw(bad, drawing_of(1), arrival))
        await asyncio.sleep(0)
        (drawn,) = await drawn_by(batcher, (SlowModel(), 1))
        with pytest.raises(Refused) as refused:
            await task
        assert refused.value.status == 500
        return drawn

    assert asyncio.run(both()).pixels.shape == (1, 2, 2, 3)


def test_a_batch_waits_for_requests_that_are_being_read(batcher: Batcher) -> None:
    model: Any = SlowModel()

    async def late() -> None:
        first, second = batcher.arrive(), batcher.arrive()
        batcher.start()
        one = asyncio.ensure_future(batcher.draw(model, drawing_of(1), first))
        await asyncio.sleep(0.01)
        await asyncio.gather(one, batcher.draw(model, drawing_of(1), second))

    asyncio.run(late())
    assert model.batches == [2]


# Promotions


class Followed:
    """A follower that looks when told to."""

    def __init__(self, store: FolderStore, name: str = "m") -> None:
        self.metrics = Metrics()
        source = Source(store, name, promoted=True)
        self.holder, follower = source.open(QUICK, self.metrics)
        assert follower is not None
        self.follower: Follower = follower

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
def followed(store: FolderStore, one_probe: None) -> Followed:
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
    store: FolderStore, one_probe: None, change: Any, error: type[Exception]
) -> None:
    make_checkpoint(store, "bad", change=change)
    with pytest.raises(error, match="not finite"):
        service_of(store, "bad")


def test_a_name_that_was_never_promoted(store: FolderStore) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        service_of(store, "nobody", promoted=True)


def test_the_digest_served_is_the_manifest_s(store: FolderStore, one_probe: None) -> None:
    found = make_checkpoint(store, "tiny")
    model = Loader(QUICK).load(found, "tiny")
    assert model.digest == found.manifest().digest
    assert len(model.digest) == len(hashlib.sha256().hexdigest())

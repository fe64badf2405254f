"""Batches: the same for any workers and after a resume; their thread ends with its consumer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.batch import Batch
from aalnet.errors import DataError
from aalnet.settings import Settings
from cluster.data import reader
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from tests.support.tiny_runs import noise_rows, tiny_settings, write_data, write_pairs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path, train_rows=13)


def many_changes(data: Path, **overrides: Any) -> Settings:
    """Batches of 5 with every random change on."""
    values = {
        "data.batch_images": 5,
        "data.noised_share": 0.5,
        "data.shift_px": 3,
        "data.balanced_labels": True,
        "run.images": 40,
    }
    return tiny_settings(data, values | {k.replace("__", "."): v for k, v in overrides.items()})


def read(
    settings: Settings, images_seen: int = 0, rank: int = 0, workers: int = 1
) -> Iterator[Batch]:
    pairs = Pairs(settings.data.train, settings.data.size_px)
    batches = read_batches(pairs, settings, images_seen, rank, workers)
    return (batch.to(torch.device("cpu"), torch.float32) for batch in batches)


def joined(parts: tuple[Batch, ...]) -> dict[str, torch.Tensor]:
    names = ("condition", "target", "label", "noise")
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def assert_same(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "batch-reader"]


# What a batch holds


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_share_the_same_global_batches(data: Path, workers: int) -> None:
    settings = many_changes(data)
    whole = [joined((batch,)) for batch in read(settings)]
    assert len(whole) == 8
    parts = [list(read(settings, rank=rank, workers=workers)) for rank in range(workers)]
    assert all(part.global_images == 5 for batches in parts for part in batches)
    assert_same([joined(batches) for batches in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_resumed_run_reads_the_remainder(data: Path, balanced: bool) -> None:
    settings = many_changes(data, data__balanced_labels=balanced)
    whole = [joined((batch,)) for batch in read(settings)]
    for done in range(1, 9):
        rest = [joined((batch,)) for batch in read(settings, images_seen=5 * done)]
        assert_same(rest, whole[done:])


def test_condition_and_target_are_changed_alike(tmp_path: Path) -> None:
    rows = noise_rows(6)
    for row in rows:
        row["target"] = row["condition"]
    write_pairs(tmp_path / "train.parquet", rows)
    settings = many_changes(tmp_path, data__noised_share=0.0)
    batches = list(read(settings))
    assert all(torch.equal(batch.condition, batch.target) for batch in batches)
    plain = Pairs(settings.data.train, 32)
    originals = [torch.from_numpy(plain.pair(row)[0]) / 127.5 - 1 for row in range(6)]
    seen = torch.cat([batch.condition for batch in batches])
    unchanged = sum(any(torch.equal(image, o) for o in originals) for image in seen)
    assert unchanged < len(seen) / 3, "most are mirrored or shifted"


def test_a_batch_is_in_range_and_its_target_is_never_noised(data: Path) -> None:
    changes = {"data__noised_share": 1.0, "data__noised_std": 1.5, "data__flip": False}
    noised = next(read(many_changes(data, data__shift_px=0, **changes)))
    plain = next(
        read(many_changes(data, data__shift_px=0, **(changes | {"data__noised_share": 0.0})))
    )
    assert torch.equal(noised.target, plain.target)
    assert not torch.isclose(noised.condition, plain.condition).all()
    assert noised.condition.abs().max() <= 1
    assert noised.condition.dtype == noised.noise.dtype == torch.float32
    assert noised.label.dtype == torch.int64
    assert noised.noise.shape == (5, 1 + 2, 4), "the proposal's, and two of the prior"


@pytest.mark.parametrize(("model", "k"), [("aalnet", 2), ("vae", 1), ("gan", 1), ("vae-gan", 1)])
def test_a_model_of_one_sample_gets_no_more_noise(data: Path, model: str, k: int) -> None:
    """And the proposal's is the same whatever K is."""
    (one, other) = (
        next(read(many_changes(data, model=model, objective__K=each))).noise for each in (2, 5)
    )
    assert one.shape == (5, 1 + k, 4)
    assert torch.equal(one[:, :2], other[:, :2])


def test_batches_that_are_kept_are_not_written_over(data: Path) -> None:
    settings = many_changes(data, run__images=200)
    kept = list(read(settings))
    assert len(kept) == 40
    for batch, again in zip(kept, read(settings), strict=True):
        assert_same([joined((batch,))], [joined((again,))])


def test_the_last_batch_is_whole(data: Path) -> None:
    batches = list(read(many_changes(data, run__images=11)))
    assert [len(batch.label) for batch in batches] == [5, 5, 5]
    assert list(read(many_changes(data, run__images=11), images_seen=15)) == []


# The thread that reads


def test_an_error_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    rows = noise_rows(13)
    rows[12]["target"] = b"damaged"
    write_pairs(tmp_path / "train.parquet", rows)
    settings = many_changes(tmp_path, data__balanced_labels=False)
    found = []
    with pytest.raises(DataError, match="row-12"):
        found += list(read(settings))
    assert readers() == []


def test_an_error_that_is_not_ours_reaches_the_consumer_too(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("cluster.data.reader.BatchMaker.make", fail)
    with pytest.raises(MemoryError, match="no room"):
        next(read(many_changes(data)))
    assert readers() == []


@pytest.mark.parametrize("taken", [0, 1, 3, 8])
def test_closing_early_ends_the_thread(data: Path, taken: int) -> None:
    batches = read(many_changes(data))
    assert readers() == [], "nothing is started before the first batch is asked for"
    for _ in range(taken):
        next(batches)
    if 0 < taken < 8:
        assert readers() == ["batch-reader"]
    batches.close()  # type: ignore[attr-defined]
    assert readers() == []


def test_little_is_prepared_ahead(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    event = threading.Event()
    whole = reader.BatchMaker.make

    def counted(*arguments: Any) -> Batch:
        made.append(arguments[1])
        if len(made) == 1 + reader.AHEAD + 1:
            event.set()
        return whole(*arguments)

    monkeypatch.setattr(reader.BatchMaker, "make", counted)
    batches = read(many_changes(data, run__images=500))
    next(batches)
    assert event.wait(20)
    time.sleep(0.2)
    assert len(made) <= 1 + reader.AHEAD + 1
    batches.close()  # type: ignore[attr-defined]

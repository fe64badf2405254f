"""The order of images and their chance: functions of (seed, position), the same for any workers."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aalnet.batch import Batch
from aalnet.errors import DataError
from aalnet.settings import DataSettings, Settings
from cluster.data import reader
from cluster.data.order import Chance, Chances, Order, augment, worker_slice
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from tests.support.tiny_runs import noise_rows, tiny_settings, write_data, write_pairs

UNEVEN = np.array([0, 2, 1, 1, 0, 1, 1, 2, 1, 1, 0], np.int64)  # 3, 6 and 2 rows


def rows_at(order: Order, first: int, count: int) -> list[int]:
    return [order.row(position) for position in range(first, first + count)]


# Order


@pytest.mark.parametrize("count", [1, 2, 11, 50])
def test_every_epoch_holds_every_row_once(count: int) -> None:
    order = Order(np.zeros(count, np.int64), seed=3, balanced=False)
    epochs = [tuple(rows_at(order, epoch * count, count)) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count == 50:
        assert len(set(epochs)) == 5


@pytest.mark.parametrize("balanced", [False, True])
def test_the_row_is_a_function_of_seed_and_position(balanced: bool) -> None:
    order = Order(UNEVEN, seed=7, balanced=balanced)
    forwards = rows_at(order, 0, 300)
    again = Order(UNEVEN.copy(), seed=7, balanced=balanced)
    backwards = [again.row(position) for position in reversed(range(300))]
    assert forwards == backwards[::-1]
    assert all(type(row) is int for row in forwards)
    assert forwards != rows_at(Order(UNEVEN, seed=8, balanced=balanced), 0, 300)


def test_positions_far_into_a_run_need_no_walk_through_the_run() -> None:
    order = Order(UNEVEN, seed=1, balanced=True)
    assert 0 <= order.row(10**12) < len(UNEVEN)
    assert 0 <= Order(UNEVEN, seed=2**63 - 1, balanced=False).row(10**15) < len(UNEVEN)


def test_balanced_blocks_hold_each_label_once() -> None:
    order = Order(UNEVEN, seed=5, balanced=True)
    drawn = UNEVEN[rows_at(order, 0, 3 * 200)].reshape(200, 3)
    assert (np.sort(drawn, axis=1) == [0, 1, 2]).all()
    assert len({tuple(block) for block in drawn.tolist()}) == 6, "labels stand in every order"


@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_rows_of_a_label_come_in_epochs(label: int) -> None:
    order = Order(UNEVEN, seed=5, balanced=True)
    own = [row for row, of in enumerate(UNEVEN) if of == label]
    drawn = [row for row in rows_at(order, 0, 3 * 60) if UNEVEN[row] == label]
    assert len(drawn) == 60
    for start in range(0, 60, len(own)):
        assert sorted(drawn[start : start + len(own)]) == own


def test_a_label_that_has_no_rows_is_left_out() -> None:
    order = Order(np.array([0, 2, 2, 2], np.int64), seed=0, balanced=True)
    assert Counter(rows_at(order, 0, 60))[0] == 30


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7, 24])
def test_slices_part_the_batch_evenly(workers: int) -> None:
    for size in range(workers, 60):
        slices = [worker_slice(size, rank, workers) for rank in range(workers)]
        assert [offset for part in slices for offset in part] == list(range(size))
        lengths = {len(part) for part in slices}
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1


# Chance


def chance(
    data: DataSettings, seed: int, position: int, noise_shape: tuple[int, int], channels: int
) -> Chance:
    (one,) = Chances(data, seed, noise_shape, channels).at(range(position, position + 1))
    return one


def data_settings(**values: Any) -> DataSettings:
    return DataSettings(**({"size_px": 32, "noised_share": 0.3, "shift_px": 2} | values))


def test_chance_is_a_function_of_seed_and_position() -> None:
    data = data_settings(noised_share=0.5)
    for position in range(20):
        one, other = (chance(data, 1, position, (3, 4), 3) for _ in range(2))
        assert (one.flip, one.shift) == (other.flip, other.shift)
        np.testing.assert_array_equal(one.noise, other.noise)
        np.testing.assert_array_equal(one.condition_noise, other.condition_noise)
    first, second = chance(data, 1, 0, (3, 4), 3).noise, chance(data, 1, 1, (3, 4), 3).noise
    assert not np.isclose(first, second).any()
    assert not np.isclose(first, chance(data, 2, 0, (3, 4), 3).noise).any()


def test_neighbours_drawn_together_have_the_same_chance_as_alone() -> None:
    data = data_settings(noised_share=0.5)
    together = list(Chances(data, 3, (2, 4), 3).at(range(40, 60)))
    for position, one in zip(range(40, 60), together, strict=True):
        other = chance(data, 3, position, (2, 4), 3)
        assert (one.flip, one.shift) == (other.flip, other.shift)
        np.testing.assert_array_equal(one.noise, other.noise)
        np.testing.assert_array_equal(one.condition_noise, other.condition_noise)
    far = [2**40, 2**62]
    assert len({chance(data, 3, p, (2, 4), 3).noise.tobytes() for p in [*far, 0, 1]}) == 4


def test_noise_of_conditions_is_normal() -> None:
    data = data_settings(noised_share=1.0, noised_std=1.0)
    noise = np.concatenate([
        chance(data, 5, position, (1, 1), 3).condition_noise.ravel() for position in range(40)
    ])  # fmt: skip
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, rel=0.01)
    assert (np.abs(noise) < 1).mean() == pytest.approx(0.6827, abs=0.01)
    assert (np.abs(noise) > 3).mean() == pytest.approx(0.0027, abs=0.0006)
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01


def test_fewer_samples_get_a_prefix_of_the_noise() -> None:
    for position in range(50):
        whole = chance(data_settings(), 1, position, (8, 5), 3)
        for k in (1, 2, 5):
            part = chance(data_settings(), 1, position, (k, 5), 3)
            np.testing.assert_array_equal(part.noise, whole.noise[:k])
            assert (part.flip, part.shift) == (whole.flip, whole.shift)
            assert (part.condition_noise is None) == (whole.condition_noise is None)


def test_one_setting_does_not_change_the_luck_of_another() -> None:
    for position in range(50):
        plain = chance(data_settings(), 1, position, (2, 3), 3)
        others = [
            chance(data_settings(flip=False), 1, position, (2, 3), 3),
            chance(data_settings(noised_share=0.0), 1, position, (2, 3), 3),
            chance(data_settings(noised_share=1.0), 1, position, (2, 3), 3),
        ]
        for other in others:
            assert other.shift == plain.shift
            np.testing.assert_array_equal(other.noise, plain.noise)
        assert (others[0].flip, others[1].flip) == (False, plain.flip)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_noised_conditions_and_of_mirrored_pairs(share: float) -> None:
    data = data_settings(noised_share=share, noised_std=0.1)
    lucks = [chance(data, 11, position, (1, 2), 1) for position in range(2_000)]
    noised = [luck.condition_noise for luck in lucks if luck.condition_noise is not None]
    assert abs(len(noised) / 2_000 - share) <= 3 * (share * (1 - share) / 2_000) ** 0.5
    assert abs(sum(luck.flip for luck in lucks) / 2_000 - 0.5) < 0.034
    if noised:
        assert noised[0].shape == (1, 32, 32)
        assert np.std(noised) == pytest.approx(0.1, rel=0.02)
        assert all(noise.dtype == np.float32 for noise in noised)
    shifts = Counter(luck.shift for luck in lucks)
    assert len(shifts) == 25
    assert {abs(step) for shift in shifts for step in shift} == {0, 1, 2}
    assert np.std([luck.noise for luck in lucks]) == pytest.approx(1, rel=0.05)


def test_no_shift() -> None:
    lucks = [chance(data_settings(shift_px=0), 1, position, (1, 1), 1) for position in range(20)]
    assert {luck.shift for luck in lucks} == {(0, 0)}


# Augmentation


PICTURE = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], np.uint8)


@pytest.mark.parametrize(
    ("flip", "shift", "expected"),
    [
        (False, (0, 0), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (True, (0, 0), [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        (False, (1, 0), [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        (False, (-1, 0), [[4, 5, 6], [7, 8, 9], [7, 8, 9]]),
        (False, (0, 1), [[1, 1, 2], [4, 4, 5], [7, 7, 8]]),
        (False, (0, -1), [[2, 3, 3], [5, 6, 6], [8, 9, 9]]),
        (True, (1, 1), [[3, 3, 2], [3, 3, 2], [6, 6, 5]]),
        (False, (2, -2), [[3, 3, 3], [3, 3, 3], [3, 3, 3]]),
    ],
)
def test_mirror_and_shift_by_hand(
    flip: bool, shift: tuple[int, int], expected: list[list[int]]
) -> None:
    before, into = PICTURE.copy(), np.zeros_like(PICTURE)
    augment(into, PICTURE, flip, shift)
    np.testing.assert_array_equal(into[0], expected)
    np.testing.assert_array_equal(PICTURE, before)


# Batches


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
    assert noised.noise.shape == (5, 2, 4)


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

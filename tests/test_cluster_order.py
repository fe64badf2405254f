"""The order of images and their chance: functions of (seed, position), the same for any workers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from aalnet.settings import DataSettings
from cluster.data.order import Chance, Chances, Order, augment, worker_slice

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

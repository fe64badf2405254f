"""Where the time of a run went, from logs made by hand."""

import time
from typing import Any

import pytest

from cluster.runs.goodput import PARTS, before_start, goodput
from cluster.runs.run import Record

BATCH = 4


def log(*parts: tuple[str, int, float, dict[str, Any]]) -> list[Record]:
    return [
        {"kind": kind, "images": images, "time_s": at, **more} for kind, images, at, more in parts
    ]


STEADY = log(
    ("start", 0, 100.0, {"startup_s": 7.0}),
    ("train", 8, 110.0, {"step_s": 2.0, "data_s": 0.5}),
    ("train", 16, 120.0, {"step_s": 3.0, "data_s": 0.25}),
    ("evaluation", 16, 124.0, {"seconds": 4.0}),
    ("checkpoint", 16, 125.0, {"seconds": 2.0, "stall_s": 0.125}),
    ("end", 16, 130.0, {"status": "finished", "train_seconds": 30.0}),
)


def test_parts_add_up_to_the_whole() -> None:
    found = goodput(STEADY, BATCH)
    assert found.seconds == {
        "step": 2 * 2.0 + 2 * 3.0, "data": 2 * 0.5 + 2 * 0.25, "evaluation": 4.0,
        "checkpoint": 0.125, "start": 7.0, "recovery": 0.0, "lost work": 0.0,
        "other": 30.0 - 10.0 - 1.5 - 4.0 - 0.125,
    }  # fmt: skip
    assert tuple(found.seconds) == PARTS
    assert found.total_s == pytest.approx(7.0 + 30.0)
    assert found.share == pytest.approx(10.0 / 37.0)
    assert found.restarts == {}


def test_the_upload_in_the_background_costs_nothing() -> None:
    slow = [r | {"seconds": 500.0} if r["kind"] == "checkpoint" else r for r in STEADY]
    assert goodput(slow, BATCH) == goodput(STEADY, BATCH)


def test_a_killed_run_counts_what_it_lost() -> None:
    again = log(
        ("start", 16, 200.0, {"recovery_s": 12.0, "down_s": 30.0, "lost_s": 9.0,
                              "lost_images": 8, "cause": "crash"}),
        ("train", 24, 210.0, {"step_s": 1.0, "data_s": 0.0}),
        ("start", 24, 300.0, {"recovery_s": 3.0, "lost_s": 1.0, "cause": "crash"}),
        ("start", 24, 400.0, {"recovery_s": 1.0, "cause": "preemption"}),
        ("end", 24, 401.0, {"status": "finished"}),
    )  # fmt: skip
    found = goodput([*STEADY, *again], BATCH)
    assert found.seconds["recovery"] == 16.0
    assert found.seconds["lost work"] == 10.0
    assert found.seconds["start"] == 7.0
    assert found.seconds["step"] == 10.0 + 2 * 1.0
    assert found.restarts == {"crash": 2, "preemption": 1}
    # Between the launches nobody held a machine: 130 to 200 is in no part but recovery.
    assert found.total_s == pytest.approx(37.0 + 16.0 + 10.0 + 10.0 + 1.0)


def test_a_perfect_run_has_all_its_time_in_steps() -> None:
    records = log(
        ("start", 0, 0.0, {"startup_s": 0.0}),
        ("train", 40, 10.0, {"step_s": 1.0, "data_s": 0.0}),
    )
    assert goodput(records, BATCH).share == pytest.approx(1.0)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"kind": "start", "images": 0}],
        [{"kind": "train", "images": 8}],
        log(("train", 8, 5.0, {}), ("train", 16, 4.0, {})),  # a clock that was put back
        log(("warning", 0, 5.0, {"text": "x"})),
    ],
)
def test_a_log_with_little_in_it(records: list[Record]) -> None:
    found = goodput(records, BATCH)
    assert (found.total_s, found.share, found.restarts) == (0.0, 0.0, {})


def test_a_clock_that_was_put_back_takes_nothing_away() -> None:
    records = log(("start", 0, 100.0, {}), ("train", 8, 90.0, {}), ("train", 16, 105.0, {}))
    assert goodput(records, BATCH).seconds["other"] == 5.0


# Before a start


@pytest.fixture
def now_s() -> float:
    return time.time()


def test_a_first_start_took_as_long_as_since_its_launch(now_s: float) -> None:
    found = before_start([], [], 0, now_s - 5)
    assert found == {"startup_s": pytest.approx(5.0, abs=1.0)}


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_after_an_end_the_next_command_starts_anew(now_s: float, status: str) -> None:
    kept = log(("train", 8, now_s - 900, {}), ("end", 8, now_s - 800, {"status": status}))
    assert before_start(kept, [], 8, now_s - 3) == {"startup_s": pytest.approx(3.0, abs=1.0)}
    assert before_start(kept[:1], kept[1:], 8, now_s - 3) == {
        "startup_s": pytest.approx(3.0, abs=1.0)
    }


def test_a_worker_that_died_is_back_in_the_same_launch(now_s: float) -> None:
    kept = log(("start", 0, now_s - 90, {}), ("checkpoint", 16, now_s - 50, {}))
    dropped = log(("train", 24, now_s - 30, {}), ("train", 32, now_s - 10, {}))
    found = before_start(kept, dropped, 16, now_s - 100)
    assert found == {
        "recovery_s": pytest.approx(10.0, abs=1.0), "down_s": 0.0,
        "lost_s": pytest.approx(40.0, abs=0.1), "lost_images": 16,
    }  # fmt: skip


def test_workers_that_told_why_they_failed_are_no_new_launch(now_s: float) -> None:
    """An outage ends the workers with a last word; the driver starts them again."""
    kept = log(("start", 0, now_s - 90, {}), ("checkpoint", 16, now_s - 50, {}))
    dropped = log(("train", 24, now_s - 20, {}), ("end", 24, now_s - 10, {"status": "failed"}))
    found = before_start(kept, dropped, 16, now_s - 3600)
    assert "startup_s" not in found
    assert found["recovery_s"] == pytest.approx(10.0, abs=1.0)
    assert found["lost_s"] == pytest.approx(40.0, abs=0.1)
    assert found["lost_images"] == 8


def test_the_time_when_nobody_trained_is_down_and_no_recovery(now_s: float) -> None:
    kept = log(("start", 0, now_s - 9000, {}), ("checkpoint", 16, now_s - 8000, {}))
    found = before_start(kept, log(("train", 24, now_s - 7990, {})), 16, now_s - 6)
    assert found["down_s"] == pytest.approx(7984.0, abs=0.1)
    assert found["recovery_s"] == pytest.approx(6.0, abs=1.0)
    assert found["lost_s"] == pytest.approx(10.0, abs=0.1)
    assert found["lost_images"] == 8


def test_killed_before_its_first_checkpoint_all_is_lost(now_s: float) -> None:
    dropped = log(("train", 8, now_s - 50, {}), ("train", 16, now_s - 20, {}))
    found = before_start([], dropped, 0, now_s - 60)
    assert found["lost_s"] == pytest.approx(30.0, abs=0.1)
    assert found["lost_images"] == 16

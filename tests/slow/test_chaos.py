"""The chaos benchmark, a short one: kills and stops at random moments, against a real S3 server."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.proof.chaos import BEGIN, END, between, goodput_table
from tests.proof.kills import kills, shooting_range
from tests.proof.lane import Case, Moment, Range
from tests.proof.ray_kills import Share
from tests.support.repeats import repeats

SEED = 2  # whose first cases meet all three networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    with shooting_range(tmp_path_factory.mktemp("chaos")) as running:
        yield running


def test_kill_9_at_random_moments(made: Range) -> None:
    count = repeats(3, 20)
    cases = kills(made, count, SEED, signal.SIGKILL)
    assert [case.wrong for case in cases] == [[]] * count
    assert {case.code for case in cases} == {-signal.SIGKILL}


def test_sigterm_loses_no_step(made: Range) -> None:
    count = repeats(2, 20)
    cases = kills(made, count, SEED, signal.SIGTERM)
    assert [case.wrong for case in cases] == [[]] * count
    assert max(case.end_s for case in cases) < 25


# The document


def case(**facts: object) -> Case:
    values = {"number": 1, "network": "plain", "forked": True, "moment": Moment("steps", 3, 0.5)}
    return Case(**{**values, **facts})  # type: ignore[arg-type]


def test_the_block_is_put_between_the_markers() -> None:
    before = f"# Reliability\n\nmine\n\n{BEGIN}\nold\n{END}\n\nmine too\n"
    after = between(before, r"| new \1 |")
    assert after == before.replace("old", r"| new \1 |")
    assert between(after, "old") == before


def test_goodput_counts_only_steps_that_stay() -> None:
    share = Share("aalnet", seconds=100.0, kills=2, images=4000, step_s=0.05)
    assert share.goodput == pytest.approx(0.5)
    assert "| aalnet | 0.50 | 2 | 4,000 | 50.0 ms |" in goodput_table([share])

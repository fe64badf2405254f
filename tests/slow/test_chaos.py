"""The chaos benchmark, a short one: kills and stops at random moments, against a real S3 server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.chaos import BEGIN, END, between, goodput_table, kill_table, stop_table
from tests.proof.kills import Case, Moment, Range, kills, shooting_range
from tests.proof.ray_kills import Share, worker_kills
from tests.support.tiny_runs import write_data

SEED = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    with shooting_range(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.mark.timeout(300)
def test_kill_9_at_random_moments(made: Range) -> None:
    cases = kills(made, 5, SEED, signal.SIGKILL)
    assert [case.wrong for case in cases] == [[]] * 5
    assert {case.code for case in cases} == {-signal.SIGKILL}


@pytest.mark.timeout(300)
def test_sigterm_loses_no_step(made: Range) -> None:
    cases = kills(made, 3, SEED, signal.SIGTERM)
    assert [case.wrong for case in cases] == [[]] * 3
    assert max(case.end_s for case in cases) < 25


@pytest.mark.timeout(400)
def test_a_killed_ray_worker_comes_back(made: Range, tmp_path: Path) -> None:
    write_data(tmp_path)
    found = worker_kills(made.server, tmp_path, 1, SEED)
    assert found.wrong == []
    assert max(found.to_step_s) < 60


# The document


def case(**facts: object) -> Case:
    values = {"number": 1, "network": "plain", "forked": True, "moment": Moment("steps", 3, 0.5)}
    return Case(**{**values, **facts})  # type: ignore[arg-type]


def test_the_block_is_put_between_the_markers() -> None:
    before = f"# Reliability\n\nmine\n\n{BEGIN}\nold\n{END}\n\nmine too\n"
    after = between(before, r"| new \1 |")
    assert after == before.replace("old", r"| new \1 |")
    assert between(after, "old") == before


def test_the_tables_count_what_went_wrong() -> None:
    good = case(images=64, visible=32, seen=1, hit="a step")
    bad = case(images=64, visible=0, seen=0, hit="a step", wrong=["lost 64 images"])
    told = "\n".join(kill_table([good, bad]))
    assert "| 1 of 2 |" in told
    assert "| 1.50, 2.00 |" in told
    assert "a step 2" in told
    assert "| 1.0, 1.5 |" in "\n".join(stop_table([case(end_s=0.5), case(end_s=1.5)]))


def test_goodput_counts_only_steps_that_stay() -> None:
    share = Share("aalnet", seconds=100.0, kills=2, images=4000, step_s=0.05)
    assert share.goodput == pytest.approx(0.5)
    assert "| aalnet | 0.50 | 2 | 4,000 | 50.0 ms |" in goodput_table([share])

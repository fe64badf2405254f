"""Demo settings, one process, one thread. A train state with `K = 4` and one with `K = 1` step in
turns on the same real images; a round is a whole cycle of 16 steps with all penalties. The figure
is the ratio of the medians over rounds."""

from __future__ import annotations

from benchmarks.speed.steps import CYCLE, contender, demo, in_turns, medians, ratio, spread
from benchmarks.table import Result, Row

BAR = 2.7


def measure(quick: bool) -> Result:
    """The price of three more samples per condition."""
    sides = {f"K = {k}": contender(demo(f"objective.K={k}", quick=quick)) for k in (4, 1)}
    seconds, cpu = in_turns(sides, range(CYCLE), rounds=1 if quick else 5)
    return Result(
        rows=[
            Row(
                "whole step, K = 4 / K = 1",
                ratio(seconds, "K = 4", "K = 1"),
                bar=BAR,
            )
        ],
        raw=[
            *medians(seconds, "step", CYCLE),
            spread(seconds, "K = 4", "K = 1"),
            f"K = 4 / K = 1 in CPU seconds: {ratio(cpu, 'K = 4', 'K = 1'):.3f}",
        ],
    )

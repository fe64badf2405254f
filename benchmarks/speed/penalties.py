"""Demo settings, one process, one thread, real batches held in memory. Two train states step in
turns, one as configured (finite differences, interval 16), one with `gamma = flatness = 0`. A
round is a whole cycle of 16 steps, so it holds one step with both penalties of G and four with
that of D; the figure is the ratio of the medians over rounds. All-reduces are counted by
`ProcessWorld` in two gloo processes, for a step without and a step with the penalties."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed.loops import gloo_workers
from benchmarks.speed.steps import CYCLE, contender, demo, in_turns, medians, ratio, spread
from benchmarks.table import Result, Row
from cluster.training.world import current_world

BAR = 1.25


def measure(quick: bool) -> Result:
    """The price of both penalties, amortised."""
    sides = {
        "with": contender(demo(quick=quick)),
        "without": contender(demo("objective.gamma=0", "objective.flatness=0", quick=quick)),
    }
    seconds, cpu = in_turns(sides, range(CYCLE), rounds=1 if quick else 5)
    plain, due = count_all_reduces()
    return Result(
        rows=[
            Row(
                "step with both penalties / without",
                ratio(seconds, "with", "without"),
                bar=BAR,
            ),
            Row("all-reduces, a step without penalties", plain),
            Row("all-reduces, a step with both penalties", due),
        ],
        raw=[
            *medians(seconds, "step", CYCLE),
            spread(seconds, "with", "without"),
            f"with / without in CPU seconds: {ratio(cpu, 'with', 'without'):.3f}",
        ],
    )


def count_all_reduces() -> tuple[int, int]:
    """Of a step without and a step with both penalties, on worker 0 of 2."""
    plain, due = gloo_workers(_count, 2)[0].split()
    return int(plain), int(due)


def _count(rank: int, answers: Path) -> None:
    world = current_world()
    side = contender(demo("data.batch_images=4"), rank, world.size)
    counts = []
    for number in (0, CYCLE - 1):
        before = world.all_reduces
        side.step(number, world)
        counts.append(world.all_reduces - before)
    (answers / str(rank)).write_text(" ".join(map(str, counts)))

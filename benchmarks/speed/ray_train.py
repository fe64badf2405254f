"""The same loop (`cluster.training.loop.train`, demo settings, two workers with the same number of
threads, gloo) is started in turns by Ray Train and by plain torch.multiprocessing. A local Ray is
started for each of its runs and stopped after it, so that its own processes burden its side only.
Seconds are those of the loop's own log (step and data wait), one record a cycle of 16 steps; the
first cycle of each run is left out. The figure is the ratio of the medians over all cycles.

Where every core has a worker, the bar cannot be met: in steady state Ray's own dozen processes take
0.7 to 1.2 % of a core each, about a tenth of a core together, and a step waits for whichever worker
they interrupt (two workers on two cores were busy 90 % of the time). RAY_worker_niceness=0 in place
of Ray's 15 made no difference; switching its metrics and task events off won about 5 %."""

from __future__ import annotations

import statistics

from benchmarks.speed.loops import cycle_seconds, loop_settings, plain_loop, ray_loop
from benchmarks.speed.steps import CYCLE, Seconds, medians, ratio
from benchmarks.table import Result, Row

BAR = 1.02


def measure(quick: bool) -> Result:
    """What Ray Train adds to a step."""
    pairs, cycles = (1, 2) if quick else (4, 5)
    settings = loop_settings(cycles * CYCLE, quick=quick)
    seconds: Seconds = {"Ray Train": [], "plain torch": []}
    runs: Seconds = {"Ray Train": [], "plain torch": []}
    for pair in range(pairs):
        both = {"Ray Train": ray_loop, "plain torch": plain_loop}
        for name in sorted(both, reverse=pair % 2 == 1):
            found = cycle_seconds(both[name](settings))
            seconds[name] += found
            runs[name].append(statistics.median(found))
    return Result(
        rows=[
            Row(
                "step under Ray Train / plain torch",
                ratio(seconds, *seconds),
                bar=BAR,
            ),
            Row("step under Ray Train", 1e3 * statistics.median(seconds["Ray Train"]), "ms"),
        ],
        raw=[*medians(seconds, "step"), *(_each(name, runs[name]) for name in runs)],
    )


def _each(name: str, runs: list[float]) -> str:
    return f"{name}, medians of the single runs: {', '.join(f'{1e3 * s:.1f}' for s in runs)} ms"

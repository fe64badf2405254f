"""Times things side by side, in turns: what else the machine does then falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Case = Callable[[int], object]  # does the step of this number


@dataclass(frozen=True)
class Times:
    """Wall and CPU seconds of each case, one value a round."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, a: str, b: str) -> float:
        """Median wall seconds of `a` over those of `b`."""
        return median(self.wall[a]) / median(self.wall[b])

    def cpu_ratio(self, a: str, b: str) -> float:
        """Median CPU seconds of `a` over those of `b`."""
        return median(self.cpu[a]) / median(self.cpu[b])

    def single_rounds(self, a: str, b: str) -> str:
        """The ratios of the single rounds, in words."""
        ratios = [x / y for x, y in zip(self.wall[a], self.wall[b], strict=True)]
        return f"{a} / {b}, single rounds: {min(ratios):.3f} to {max(ratios):.3f} ({len(ratios)})"

    def medians(self, what: str, per_round: int = 1) -> list[str]:
        """A line for each case: its median milliseconds a `what`, of which a round has many."""
        return [
            f"{name}: {1e3 * median(values) / per_round:.1f} ms a {what}, median of {len(values)}"
            for name, values in self.wall.items()
        ]


def in_turns(
    cases: Mapping[str, Case], rounds: int, numbers: Sequence[int] = (0,),
    *, warm: Sequence[int] | None = None, between: Callable[[], object] = lambda: None,
) -> Times:  # fmt: skip
    """Seconds of all steps `numbers`, by case and round; one step of each case in turn.

    Who goes first changes every step. `warm` are the steps before anything counts, by default the
    first and the last of `numbers`. `between` is called before each step, and its time not counted.
    """
    names = list(cases)
    for number in (numbers[0], numbers[-1]) if warm is None else warm:
        for name in names:
            between()
            cases[name](number)
    times = Times({name: [] for name in names}, {name: [] for name in names})
    for _ in range(rounds):
        for values in (*times.wall.values(), *times.cpu.values()):
            values.append(0.0)
        for number in numbers:
            for name in names:
                between()
                started_s, cpu_started_s = time.perf_counter(), time.process_time()
                cases[name](number)
                times.wall[name][-1] += time.perf_counter() - started_s
                times.cpu[name][-1] += time.process_time() - cpu_started_s
            names = names[1:] + names[:1]
    return times

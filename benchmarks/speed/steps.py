"""Training steps of several settings, timed in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch

from aalnet.baselines import STEPS
from aalnet.batch import ALONE, Batch, World
from aalnet.settings import Settings, load_settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches

DEMO = "configs/demo.yaml"
CYCLE = 16  # steps: one G penalty, four of D, at the demo's intervals
QUICK = ("data.batch_images=4",)  # a smoke test of the benchmarks, not a measurement

Seconds = dict[str, list[float]]  # by contender, one value a round


def demo(*overrides: str, quick: bool = False) -> Settings:
    """The demo's settings with `key=value` changes."""
    return load_settings(DEMO, [*(QUICK if quick else ()), *overrides])


@dataclass
class Contender:
    """A train state and the batches it steps on."""

    state: TrainState
    batches: list[Batch]

    def step(self, number: int, world: World = ALONE) -> tuple[float, float]:
        """Do the step of this number (it decides what is due); its wall and CPU seconds."""
        self.state.steps = number
        batch = self.batches[number % len(self.batches)]
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        STEPS[self.state.settings.model](self.state, self.state.place(batch), world)
        return time.perf_counter() - started_s, time.process_time() - cpu_started_s


@cache
def training_pairs(source: str, size_px: int) -> Pairs:
    """The decoded training pairs, once for all contenders."""
    pairs = Pairs(source, size_px)
    pairs.preload()
    return pairs


def contender(settings: Settings, rank: int = 0, workers: int = 1) -> Contender:
    """A fresh state on the CPU, and one cycle of real batches."""
    pairs = training_pairs(settings.data.train, settings.data.size_px)
    state = TrainState(settings, pairs.spec, torch.device("cpu"))
    batches = islice(read_batches(pairs, settings, 0, rank, workers), CYCLE)
    return Contender(state, list(batches))


def in_turns(
    contenders: Mapping[str, Contender], numbers: Sequence[int], rounds: int
) -> tuple[Seconds, Seconds]:
    """Wall and CPU seconds of all steps `numbers`, per contender and round; one step each in turn.

    What else the machine does then falls on all alike. Who goes first changes every step.
    """
    names = list(contenders)
    for name in names:  # memory and code are warm before anything counts
        contenders[name].step(numbers[0])
        contenders[name].step(numbers[-1])
    wall: Seconds = {name: [] for name in names}
    cpu: Seconds = {name: [] for name in names}
    for _ in range(rounds):
        for found in (*wall.values(), *cpu.values()):
            found.append(0.0)
        for number in numbers:
            for name in names:
                wall_s, cpu_s = contenders[name].step(number)
                wall[name][-1] += wall_s
                cpu[name][-1] += cpu_s
            names = names[1:] + names[:1]
    return wall, cpu


def ratio(seconds: Seconds, a: str, b: str) -> float:
    """Median of `a` over median of `b`."""
    return statistics.median(seconds[a]) / statistics.median(seconds[b])


def spread(seconds: Seconds, a: str, b: str) -> str:
    """The ratios of the single rounds, in words."""
    ratios = [x / y for x, y in zip(seconds[a], seconds[b], strict=True)]
    return f"{a} / {b}, single rounds: {min(ratios):.3f} to {max(ratios):.3f} ({len(ratios)})"


def medians(seconds: Seconds, what: str, steps: int = 1) -> list[str]:
    """A line for each contender: its median in milliseconds a step."""
    return [
        f"{name}: {1e3 * statistics.median(values) / steps:.1f} ms a {what}, "
        f"median of {len(values)}"
        for name, values in seconds.items()
    ]

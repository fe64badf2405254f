"""What steps cost: models timed in turn in this process, and how many images seconds are worth."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from aalnet.batch import ALONE
from aalnet.corners import objective_of
from aalnet.errors import ConfigError
from aalnet.phases import Phase, Span, spans
from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.step import train_step
from cluster.data.order import worker_slice
from cluster.data.pairs import Pairs
from cluster.data.reader import BatchMaker
from cluster.training.precision import resolved_anew

WARM_UP, ROUNDS = 1, 5
BATCHES = 3  # real ones, used in turn
LONGEST_CYCLE = 10_000  # steps


class Kind(NamedTuple):
    """Steps that cost the same."""

    phase: Phase
    steps: int  # done before, which decides what falls due in such a step


Costs = Mapping[Kind, float]  # seconds


def spans_of(settings: Settings, images: int) -> list[Span]:
    """A run of so many images by its phases."""
    return spans(objective_of(settings), images)


def paces(intervals: Iterable[int]) -> dict[int, float]:
    """Steps by what falls due in them: one of each kind, and their share of all.

    {15: 1/16, 0: 15/16} where one thing is due every 16 steps (`TrainState.due`).
    """
    intervals = sorted(set(intervals))
    cycle = min(math.lcm(*intervals), LONGEST_CYCLE)
    alike: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for steps in range(cycle):
        alike[tuple(steps % every == every - 1 for every in intervals)].append(steps)
    return {steps[0]: len(steps) / cycle for steps in alike.values()}


def paces_of(settings: Settings) -> dict[int, float]:
    """The same by a run's own intervals."""
    objective = objective_of(settings).model_dump()
    return paces(value for name, value in objective.items() if name.endswith("_interval"))


def mean_step_s(costs: Costs, spans: Sequence[Span], pace: Mapping[int, float]) -> float:
    """Seconds of a run's mean step. A phase that was not timed counts as the dearest one."""
    dearest = {steps: max(s for kind, s in costs.items() if kind.steps == steps) for steps in pace}
    return sum(
        span.share * share * costs.get(Kind(span.phase, steps), dearest[steps])
        for span in spans
        for steps, share in pace.items()
    )


def images_within(seconds: float, batch_images: int, step_s: Callable[[int], float]) -> int:
    """The most images, in whole batches, that cost no more than `seconds`; 0 where one does.

    `step_s` gives the mean seconds of a step in a run of so many images.
    """

    def fits(batches: int) -> bool:
        return batches * step_s(batches * batch_images) <= seconds

    above = 1
    while fits(above):
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below * batch_images


@dataclass(frozen=True)
class Budget:
    """What a model gets of the equal seconds."""

    images: int
    step_s: float | None  # mean; None where it was not measured

    def seconds(self, batch_images: int) -> float | None:
        """Of training, by the measured steps."""
        return None if self.step_s is None else self.step_s * (self.images / batch_images)


def budgets(
    models: Mapping[str, Settings], seconds: float, device: torch.device, workers: int
) -> dict[str, Budget]:
    """Images that each model trains on in `seconds`, from costs measured side by side.

    Raises:
        ConfigError: a model's single batch takes longer.
    """
    found = {}
    for name, costs in measured(models, device, workers).items():
        settings = models[name]
        step_s = partial(_step_s, settings, costs, paces_of(settings))
        images = images_within(seconds, settings.data.batch_images, step_s)
        if not images:
            raise ConfigError(
                f"--seconds {seconds:g} is too short: one step of {name} takes "
                f"{step_s(settings.data.batch_images):.2g} s; raise it"
            )
        found[name] = Budget(images, step_s(images))
    return found


def _step_s(settings: Settings, costs: Costs, pace: Mapping[int, float], images: int) -> float:
    return mean_step_s(costs, spans_of(settings, images), pace)


def measured(
    models: Mapping[str, Settings], device: torch.device, workers: int
) -> dict[str, dict[Kind, float]]:
    """Median seconds of every kind of step of each model, the models in turn.

    With several workers the step of one of them is timed, without what it waits for others.
    """
    threads = torch.get_num_threads()
    timers = {name: _Timer(settings, device, workers) for name, settings in models.items()}
    times: dict[str, dict[Kind, list[float]]] = {
        name: {kind: [] for kind in timer.kinds} for name, timer in timers.items()
    }
    try:
        for turn in range(WARM_UP + ROUNDS):
            for name, timer in timers.items():
                torch.set_num_threads(timer.threads)
                for kind in timer.kinds:
                    seconds = timer.step_s(kind)
                    if turn >= WARM_UP:
                        times[name][kind].append(seconds)
    finally:
        torch.set_num_threads(threads)
    return {
        name: {kind: statistics.median(seconds) for kind, seconds in kinds.items()}
        for name, kinds in times.items()
    }


class _Timer:
    """Steps of one model on real batches."""

    def __init__(self, settings: Settings, device: torch.device, workers: int) -> None:
        data, run = settings.data, settings.run
        pairs = Pairs(data.train, data.size_px, data.memory_budget_mib, data.cache_gib)
        maker, size = BatchMaker(pairs, settings), data.batch_images
        offsets = worker_slice(size, 0, max(1, workers))
        self._batches = [maker.make(first * size, offsets) for first in range(BATCHES)]
        self._state = TrainState(resolved_anew(settings, pairs, device), pairs.spec, device)
        self.threads = torch.get_num_threads()
        if run.threads != "auto":
            self.threads = run.threads
        elif workers:
            self.threads = max(1, len(os.sched_getaffinity(0)) // workers)
        self.kinds = {
            Kind(span.phase, steps): span.images_seen
            for span in spans_of(settings, run.images)
            for steps in paces_of(settings)
        }

    def step_s(self, kind: Kind) -> float:
        """Seconds of one step of a kind. It trains; the state is thrown away afterwards."""
        state = self._state
        state.images_seen, state.steps = self.kinds[kind], kind.steps
        batch = self._batches[0]
        self._batches = [*self._batches[1:], batch]
        self._wait()
        started_s = time.perf_counter()
        train_step(state, state.place(batch), ALONE)
        self._wait()
        return time.perf_counter() - started_s

    def _wait(self) -> None:
        if self._state.device.type == "cuda":
            torch.cuda.synchronize(self._state.device)

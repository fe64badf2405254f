"""The number of workers changes neither the gradients nor the weights nor what is reported."""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.step import train_step
from tests.support.tiny_steps import (
    QUARTERS,
    Recorder,
    apart,
    global_batch,
    new_state,
    part_of,
    settings_of,
    train,
    vector,
    weights_of,
)


class Workers:
    """Worlds of several workers in threads, which meet at a barrier to sum."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.given: dict[int, Sequence[Tensor]] = {}
        self.summed: list[Tensor] = []
        self.calls: list[list[Tensor]] = []

    def _add_up(self) -> None:
        ranks = [self.given[rank] for rank in range(self.count)]
        self.summed = [torch.stack(list(parts)).sum(dim=0) for parts in zip(*ranks, strict=True)]
        self.calls.append(self.summed)

    def sum_of(self, rank: int, tensors: Sequence[Tensor]) -> None:
        self.given[rank] = [tensor.detach().clone() for tensor in tensors]
        if self.barrier.wait() == 0:
            self._add_up()
        self.barrier.wait()
        for tensor, total in zip(tensors, self.summed, strict=True):
            tensor.copy_(total)
        self.barrier.wait()

    def train(self, states: list[TrainState], steps: int, cuts: list[int]) -> None:
        parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]

        def work(rank: int) -> None:
            try:
                train(states[rank], steps, _Rank(self, rank), parts[rank])
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            list(pool.map(work, range(self.count)))


class _Rank:
    def __init__(self, workers: Workers, rank: int) -> None:
        self.workers, self.rank = workers, rank

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.workers.sum_of(self.rank, tensors)


CUTS = {1: [0, 5], 2: [0, 3, 5], 3: [0, 1, 3, 5]}


def trained_by(count: int, steps: int, dtype: torch.dtype, settings: Settings) -> list[TrainState]:
    states = [new_state(settings, dtype) for _ in range(count)]
    Workers(count).train(states, steps, CUTS[count])
    return states


@pytest.mark.parametrize(
    ("model", "objective", "dtype", "tolerance"),
    [
        ("aalnet", {}, torch.float64, 1e-9),
        ("aalnet", QUARTERS, torch.float64, 1e-9),
        ("aalnet", QUARTERS, torch.float32, 1e-3),
        ("gan", {}, torch.float64, 1e-9),
        ("vae", {}, torch.float64, 1e-9),
        ("vae-gan", {}, torch.float64, 1e-9),
    ],
)
def test_workers_change_nothing_in_twenty_steps(
    model: str, objective: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    """With all terms at once, and over the borders of a run's phases, after 5, 10 and 15 steps."""
    settings = settings_of(model, objective=objective)
    alone = new_state(settings, dtype)
    train(alone, 20)
    for count in (2, 3) if dtype == torch.float64 and objective else (3,):
        states = trained_by(count, 20, dtype, settings)
        for state in states:
            assert apart(weights_of(state), weights_of(alone)) <= tolerance
            assert torch.equal(weights_of(state), weights_of(states[0]))
    assert apart(weights_of(alone), weights_of(new_state(settings, dtype))) > 0.01


@pytest.mark.parametrize("penalties_due", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_summed_gradients_of_one_step(count: int, penalties_due: bool) -> None:
    settings = settings_of()
    alone, one = new_state(settings), Recorder()
    states, several = [new_state(settings) for _ in range(count)], Workers(count)
    for state in (alone, *states):
        state.steps = int(penalties_due)
    train(alone, 1, one)
    several.train(states, 1, CUTS[count])
    assert len(one.calls) == len(several.calls) == (4 if penalties_due else 2)
    for mine, theirs in zip(one.calls, several.calls, strict=True):
        assert apart(vector(theirs), vector(mine)) <= 1e-5


def test_reported_values_are_those_of_the_global_batch() -> None:
    settings = settings_of()
    batch = global_batch(0)
    whole = train_step(new_state(settings), batch)
    workers, states = Workers(2), [new_state(settings) for _ in range(2)]
    parts = [part_of(batch, slice(0, 3)), part_of(batch, slice(3, 5))]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda r: train_step(states[r], parts[r], _Rank(workers, r)), range(2))
        )
    assert found[0] == found[1]
    assert found[0] == pytest.approx(whole, rel=1e-4, abs=1e-6)

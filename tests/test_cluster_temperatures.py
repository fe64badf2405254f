"""The sampling temperature: chosen on the other half of the pairs, never by a pair's own score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.training.held_out import HeldOut
from cluster.training.temperatures import best_temperatures, cross_fitted
from tests.support.tiny_runs import tiny_settings

TRIED = [0.5, 1.0, 2.0]


def test_each_half_takes_what_is_best_on_the_other() -> None:
    even_best, odd_best = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3.0, 2.0, 1.0])
    scores = torch.stack([even_best, odd_best] * 2 + [even_best], dim=1)
    assert cross_fitted(scores, TRIED).tolist() == [2.0, 1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("pair", range(6))
def test_a_pairs_own_score_never_moves_its_own_temperature(pair: int) -> None:
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    before = cross_fitted(scores, TRIED)[pair]
    for favoured in range(3):
        scores[:, pair] = 100
        scores[favoured, pair] = -100
        chosen = cross_fitted(scores, TRIED)
        assert chosen[pair] == before
        assert chosen[1 - pair % 2] == TRIED[favoured]  # the other half follows


@pytest.fixture(scope="module")
def held_out(data: Path) -> tuple[HeldOut, TrainState]:
    settings = tiny_settings(data)
    spec = Pairs(settings.data.train, 32, 64, 0).spec
    state = TrainState(settings, spec, torch.device("cpu"))
    return HeldOut(settings, spec, torch.device("cpu")), state


def test_one_temperature_is_not_searched(held_out: tuple[HeldOut, TrainState]) -> None:
    pairs, state = held_out
    drawn = []
    state.ema.register_forward_hook(lambda *_: drawn.append(1))
    assert best_temperatures(pairs, state.ema, [1.3]).tolist() == pytest.approx([1.3] * 4)
    assert drawn == []


def test_energy_scores_are_those_of_the_evaluation(held_out: tuple[HeldOut, TrainState]) -> None:
    pairs, state = held_out
    evaluator = pairs._evaluator
    arguments = {"k": 2, "seed": 5, "temperature": 1.3}

    def draw(condition: torch.Tensor, label: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return state.ema(condition, label, noise)

    scores = evaluator.energy_scores(draw, **arguments)
    figures = evaluator.evaluate(draw, **arguments)
    assert scores.shape == (4,)
    assert float(scores.mean()) == pytest.approx(figures["energy_score"], rel=1e-6)


def test_temperatures_of_a_generator(held_out: tuple[HeldOut, TrainState]) -> None:
    pairs, state = held_out
    chosen = best_temperatures(pairs, state.ema, [0.5, 1.0, 4.0])
    assert chosen[0] == chosen[2]
    assert chosen[1] == chosen[3]
    assert set(chosen.tolist()) <= {0.5, 1.0, 4.0}
    rows = pairs.grid_rows(state.ema, 2, torch.full((4,), 3.0))
    calm = pairs.grid_rows(state.ema, 2, torch.full((4,), 0.1))
    assert torch.equal(rows[0][1], calm[0][1])
    assert (rows[0][2] - rows[0][3]).abs().mean() > 3 * (calm[0][2] - calm[0][3]).abs().mean()

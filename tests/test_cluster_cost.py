"""Equal seconds: what steps cost, and how many images that is, as arithmetic and once for real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aalnet.batch import Batch, World
from aalnet.errors import ConfigError
from aalnet.phases import Phase, Span
from aalnet.state import TrainState
from cluster.training import cost, precision
from cluster.training.cost import Kind, images_within, mean_step_s, paces
from tests.support.tiny_runs import tiny_settings

CPU = torch.device("cpu")
CHEAP, DEAR = Phase(prior=False, adversary=False), Phase(prior=True, adversary=True)


@pytest.mark.parametrize(
    ("intervals", "shares"),
    [
        ([], {0: 1}),
        ([1], {0: 1}),
        ([16, 16], {0: 15 / 16, 15: 1 / 16}),
        ([2, 4], {0: 1 / 2, 1: 1 / 4, 3: 1 / 4}),
        ([2, 3], {0: 1 / 3, 1: 1 / 3, 2: 1 / 6, 5: 1 / 6}),
    ],
)
def test_steps_by_what_falls_due(intervals: list[int], shares: dict[int, float]) -> None:
    assert paces(intervals) == pytest.approx(shares)


def test_mean_step_of_phases_and_intervals() -> None:
    spans = [Span(0, 0.7, CHEAP), Span(70, 0.3, DEAR)]
    pace = {0: 0.75, 3: 0.25}
    costs = {Kind(CHEAP, 0): 1.0, Kind(CHEAP, 3): 3.0, Kind(DEAR, 0): 4.0, Kind(DEAR, 3): 8.0}
    expected = 0.7 * (0.75 * 1 + 0.25 * 3) + 0.3 * (0.75 * 4 + 0.25 * 8)
    assert mean_step_s(costs, spans, pace) == pytest.approx(expected)


def test_a_phase_that_was_not_timed_counts_as_the_dearest() -> None:
    costs = {Kind(CHEAP, 0): 1.0, Kind(DEAR, 0): 4.0}
    new = Phase(prior=True, adversary=False)
    assert mean_step_s(costs, [Span(0, 1.0, new)], {0: 1.0}) == 4.0


@pytest.mark.parametrize(
    ("seconds", "step_s", "images"),
    [(10.0, 1.0, 120), (10.9, 1.0, 120), (11.0, 1.0, 132), (1.0, 1.0, 12), (0.9, 1.0, 0),
     (300.0, 0.25, 14_400)],
)  # fmt: skip
def test_images_are_whole_batches_within_the_seconds(
    seconds: float, step_s: float, images: int
) -> None:
    assert images_within(seconds, 12, lambda _: step_s) == images


def test_an_early_phase_of_fixed_length_weighs_less_in_a_long_run() -> None:
    def step_s(images: int) -> float:
        early = min(1.0, 100 / images)  # 100 images at 5 s a batch of ten, the others at 1 s
        return early * 5 + (1 - early)

    assert images_within(50, 10, step_s) == 100
    assert images_within(60, 10, step_s) == 200


def test_models_are_timed_in_turn_on_real_batches(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Kind]] = []

    def step(state, batch, world):  # type: ignore[no-untyped-def]
        assert batch.condition.shape == (4, 3, 32, 32)
        assert batch.condition.unique().numel() > 100
        seen.append((state.settings.model, Kind(state.phase, state.steps)))

    monkeypatch.setattr(cost, "train_step", step)
    models = {
        name: tiny_settings(
            data,
            {"model": name, "objective.ignition_images": 0, "objective.entropy_from": 0.5,
             "objective.adversary_from": 0.5},
        )
        for name in ("aalnet", "vae")
    }  # fmt: skip
    found = cost.measured(models, CPU, workers=0)
    turn = [(name, kind) for name, kinds in found.items() for kind in kinds]
    assert seen == turn * (cost.WARM_UP + cost.ROUNDS)
    assert {kind.phase for kind in found["vae"]} == {CHEAP}
    assert {kind.phase for kind in found["aalnet"]} == {CHEAP, DEAR}


def test_budgets_of_real_steps(data: Path) -> None:
    models = {name: tiny_settings(data, {"model": name}) for name in ("aalnet", "vae")}
    found = cost.budgets(models, 5.0, CPU, workers=0)
    for budget in found.values():
        assert budget.images % 4 == 0
        assert budget.step_s is not None
        assert 5.0 - budget.step_s <= budget.seconds(4) <= 5.0  # type: ignore[operator]
    assert found["vae"].images > found["aalnet"].images  # a step of aalnet does far more


def test_seconds_too_short_for_a_step(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seconds 1e-06 is too short: one step of vae takes"):
        cost.budgets({"vae": tiny_settings(data, {"model": "vae"})}, 1e-6, CPU, workers=0)


def test_steps_are_timed_in_the_precision_that_a_run_would_take(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    monkeypatch.setattr(precision, "_measured", lambda *_: 1)  # bfloat16, as if it were faster

    def step(state: TrainState, batch: Batch, world: World) -> dict[str, float]:
        seen.add(state.settings.run.precision)
        return {}

    monkeypatch.setattr(cost, "train_step", step)
    cost.measured({"vae": tiny_settings(data, {"model": "vae", "run.precision": "auto"})}, CPU, 0)
    assert seen == {"bfloat16"}

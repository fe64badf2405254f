"""Means over seeds, differences paired by seed, complaints, and the tables made of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from rich.console import Console

from cluster.runs.comparison import Comparison, Estimate, Model, Outcome
from cluster.view.comparison import markdown, notes, tables

FACTS = {
    "images": 200,
    "k": 8,
    "diversity": 0.1,
    "feature_diversity": 9.0,
    "energy_score_condition": 30.0,
}


def outcome(model: str, seed: int, energy: float | None, **facts: Any) -> Outcome:
    figures = {} if energy is None else {**FACTS, "energy_score": energy, "energy_score_se": 0.3}
    figures |= facts.pop("figures", {})
    return Outcome(model, seed, f"demo-{model}-{seed}", "0", 240, 8.0, (1.0, 1.3), figures, **facts)


def model(name: str, *energies: float | None, **facts: Any) -> Model:
    outcomes = [outcome(name, seed, energy, **facts) for seed, energy in enumerate(energies)]
    return Model(name, name, None, 240, 8.5, outcomes)


def comparison(*models: Model, seeds: int) -> Comparison:
    return Comparison("demo", "seconds", 9.0, list(range(seeds)), [1.0, 1.3], 4, list(models))


def test_mean_and_standard_error_over_seeds() -> None:
    found = model("vae", 13.0, 14.0, 15.0).estimate("energy_score")
    assert found == Estimate(14.0, pytest.approx(1 / math.sqrt(3)))


def test_differences_are_paired_by_seed() -> None:
    first, other = model("aalnet", 10.0, 20.0, 30.0), model("vae", 11.0, 21.5, 31.5)
    found = other.difference(first, "energy_score")
    assert found is not None
    assert found.mean == pytest.approx(4 / 3)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 12) / math.sqrt(3))
    assert found.clear  # though each model's own error is twenty times as large


def test_a_seed_that_one_of_them_lacks_is_left_out_of_the_difference() -> None:
    first, other = model("aalnet", 10.0, 20.0, 30.0), model("vae", 11.0, None, 32.0)
    found = other.difference(first, "energy_score")
    assert found == Estimate(pytest.approx(1.5), pytest.approx(0.5))
    assert model("gan", None, None, None).difference(first, "energy_score") is None
    assert model("gan", None).estimate("energy_score") is None


@pytest.mark.parametrize(("mean", "clear"), [(0.21, True), (-0.21, True), (0.19, False)])
def test_two_standard_errors_decide(mean: float, clear: bool) -> None:
    assert Estimate(mean, 0.1).clear is clear
    assert not Estimate(mean, None).clear


def test_one_seed_takes_the_error_over_images_and_says_so() -> None:
    first, other = model("aalnet", 10.0), model("vae", 11.0)
    assert first.estimate("energy_score") == Estimate(10.0, 0.3)
    difference = other.difference(first, "energy_score")
    assert difference == Estimate(1.0, pytest.approx(0.3 * math.sqrt(2)))
    assert other.difference(first, "diversity") == Estimate(0.0, None)
    found = comparison(first, other, seeds=1)
    assert found.errors_over == "images"
    assert any("says nothing of other seeds" in note for note in notes(found))


def test_a_silent_model_and_a_failed_run_are_named_with_their_seed() -> None:
    silent = outcome("vae", 3, 27.8, figures={"feature_diversity": 0.1})
    failed = outcome("gan", 1, None, failure="term `l1` is not finite")
    assert silent.silent
    assert "vae, seed 3, is silent" in str(silent.complaint)
    assert failed.complaint == "gan, seed 1: term `l1` is not finite"
    assert outcome("aalnet", 0, 12.0).complaint is None
    found = comparison(
        model("aalnet", 12.0),
        Model("vae", "vae", None, 1, None, [silent]),
        Model("gan", "gan", None, 1, None, [failed]),
        seeds=1,
    )
    assert found.complaints == [silent.complaint, failed.complaint]


def test_markdown_holds_both_tables() -> None:
    found = comparison(
        model("aalnet", 12.0, 12.2), model("vae", 13.0, 13.1), model("gan", 12.1, 12.4), seeds=2
    )
    text = markdown(found)
    assert "| energy_score ↓ | **12.10 ± 0.10** | 13.050 ± 0.050 | 12.25 ± 0.15 | 30.0 |" in text
    assert "| energy_score ↓ | +0.950 ± 0.050 * | +0.150 ± 0.050 * |" in text
    assert "| seconds planned | 8.50 | 8.50 | 8.50 |  |" in text
    assert "| temperature | 1 to 1.3 | 1 to 1.3 | 1 to 1.3 |  |" in text
    assert "Each model trained for 9 s" in text
    lines = [line.count("|") for line in text.splitlines() if line.startswith("| ")]
    assert set(lines) == {6, 4}


def test_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(model("aalnet", 12.0, 12.2), model("vae", None, None), seeds=2)
    for table in tables(found):
        Console(width=100).print(table)
    shown = capsys.readouterr().out
    assert "12.10 ± 0.10" in shown
    assert "vae - aalnet" in shown
    assert "[bold]" not in shown


def test_json_has_every_run_and_the_summary() -> None:
    found = comparison(model("aalnet", 12.0, 12.2), model("vae", 13.0, 13.1), seeds=2)
    plain = json.loads(json.dumps(found.to_dict()))
    vae = plain["models"][1]
    assert vae["figures"]["energy_score"]["difference"] == pytest.approx(0.95)
    assert "difference" not in plain["models"][0]["figures"]["energy_score"]
    assert [one["figures"]["energy_score"] for one in vae["outcomes"]] == [13.0, 13.1]
    assert vae["outcomes"][0]["temperatures"] == [1.0, 1.3]
    assert plain["errors_over"] == "seeds"

"""Silence is told: of a run whose samples no longer differ, in every place that shows one."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from aalnet.evaluation import Figures
from aalnet.networks import DataSpec, Generator
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState
from cluster.commands import promote, runs
from cluster.runs.checkpoint import Checkpoint, save
from cluster.runs.figures import silence, spread
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.telemetry.log_metrics import LogMetrics
from cluster.telemetry.metrics import RunMetrics
from cluster.training.held_out import HeldOut
from cluster.training.world import ProcessWorld
from cluster.view.progress import describe
from cluster.view.report import build_report
from cluster.view.run_screen import RunScreen
from tests.support.loop_runs import before_step, go, of_kind, run_in
from tests.support.metric_samples import values_of
from tests.support.tiny_runs import tiny_settings, tiny_values

# Mean distance to the target 15: between samples 12 and 0.3 of it.
LIVELY = {"k": 8, "images": 191, "energy_score": 9.0, "feature_diversity": 12.0}
SILENT = {"k": 8, "images": 191, "energy_score": 14.85, "feature_diversity": 0.3}
TOLD = "samples no longer differ"


# When it is one


def test_spread_in_features_is_between_samples_over_to_the_target() -> None:
    assert spread(LIVELY) == pytest.approx(12 / 15)
    assert spread(SILENT) == pytest.approx(0.3 / 15)


def test_spread_in_pixels_where_no_features_were_measured() -> None:
    assert spread({"k": 8, "diversity": 0.1, "l1": 0.125}) == pytest.approx(0.8)
    assert spread({"k": 8, "diversity": 0.0001, "l1": 0.125, "energy_score": 9.0}) < 0.01  # type: ignore[operator]


@pytest.mark.parametrize(
    "evaluation",
    [
        SILENT | {"k": 1},
        {"energy_score": 9.0, "feature_diversity": 0.0},
        {"k": 8},
        {"k": 8, "l1": 0.1},
        {"k": 8, "l1": 0.0, "diversity": 0.0},
        {"k": 8, "l1": math.nan, "diversity": 0.0},
        {"k": "8", "l1": "0.1", "diversity": 10**400},
    ],
)
def test_what_says_nothing_of_spread(evaluation: dict[str, Any]) -> None:
    assert spread(evaluation) is None
    assert silence(evaluation, 10_000, 10_000) is None


@pytest.mark.parametrize(
    ("at_images", "total_images", "silent"),
    [
        (1999, 10_000, False), (2000, 10_000, True), (10_000, 10_000, True),
        (5999, 1_000_000, False), (6000, 1_000_000, True),
    ],
)  # fmt: skip
def test_no_alarm_early_in_a_run(at_images: int, total_images: int, silent: bool) -> None:
    text = silence(SILENT, at_images, total_images)
    assert (text is not None) == silent
    assert not silent or f"2.0% of that to the target at {at_images:,} images" in str(text)
    assert silence(LIVELY, at_images, total_images) is None


# While a run trains


def test_a_run_warns_each_time_that_it_falls_silent(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {8: LIVELY, 16: SILENT, 24: SILENT, 32: LIVELY, 40: SILENT}
    seen = iter(figures.values())

    def evaluate(self: HeldOut, generator: Generator) -> Figures:
        return dict(next(seen))

    monkeypatch.setattr(HeldOut, "evaluate", evaluate)
    run = run_in(tmp_path)
    go(run, tiny_settings(data, {"run.checkpoint_every_images": 8, "run.images": 40}))
    told = [record for record in of_kind(run, "warning") if TOLD in record["text"]]
    assert [record["images"] for record in told] == [16, 40]
    assert run.status() == "finished"


def test_a_run_that_goes_on_silent_does_not_say_it_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldOut, "evaluate", lambda self, generator: dict(SILENT))
    run = run_in(tmp_path)
    settings = tiny_settings(data, {"run.checkpoint_every_images": 8, "run.images": 24})
    world = ProcessWorld()
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 12, lambda: setattr(world, "stop_requested", True))
        assert go(run, settings, world=world) == "stopped"
    assert go(run, settings) == "finished"
    assert [record["images"] for record in of_kind(run, "evaluation")] == [8, 16, 24]
    told = [record for record in of_kind(run, "warning") if TOLD in record["text"]]
    assert len(told) == 1
    few = [record for record in of_kind(run, "warning") if "pairs are few" in record["text"]]
    assert len(few) == 1  # neither is that said again


# Where a run is shown


@pytest.fixture
def settings() -> Settings:
    return parse_settings(tiny_values(Path()))  # 32 images


@pytest.fixture
def run(tmp_path: Path, settings: Settings) -> Run:
    found = Run(FolderStore(tmp_path), "demo")
    found.claim(settings)
    return found


def evaluation(figures: dict[str, Any], images: int = 32) -> Record:
    return {"kind": "evaluation", **figures, "images": images, "seconds": 1.0, "time_s": 1.0}


@pytest.mark.parametrize(("figures", "silent"), [(LIVELY, False), (SILENT, True)])
def test_a_silent_run_is_shown_as_one(
    run: Run, settings: Settings, figures: dict[str, Any], silent: bool
) -> None:
    record = evaluation(figures)
    run.log(record)
    where = ["show", "demo", "--storage", run.store.uri]
    page = CliRunner().invoke(runs.app, where).output
    facts = json.loads(CliRunner().invoke(runs.app, [*where, "--json"]).output)
    screen = RunScreen("demo", settings, Console(file=io.StringIO(), width=120))
    screen.show(record)
    screen.console.print(screen.page())
    shown = screen.console.file.getvalue()  # type: ignore[attr-defined]
    for text in (page, facts.get("warning", ""), describe(record, 32), shown, build_report(run)):
        assert (TOLD in text) == silent


@pytest.mark.parametrize(("figures", "share"), [(LIVELY, 0.8), (SILENT, 0.02)])
def test_silence_is_a_metric(settings: Settings, figures: dict[str, Any], share: float) -> None:
    metrics = RunMetrics(run="a", worker="0")
    from_log = LogMetrics(metrics, settings)
    from_log.add(evaluation(figures, images=4))
    assert values_of(metrics.samples())["aalnet_run_silent", ("a",)] == 0  # it is early
    from_log.add(evaluation(figures))
    found = values_of(metrics.samples())
    assert found["aalnet_evaluation_spread_ratio", ("a",)] == pytest.approx(share)
    assert found["aalnet_run_silent", ("a",)] == (share < 0.1)


# promote


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "of SIGTERM"])
@pytest.mark.parametrize(("figures", "silent"), [(LIVELY, False), (SILENT, True)])
def test_promote_warns_of_silence(
    run: Run, settings: Settings, figures: dict[str, Any], silent: bool, measured: bool
) -> None:
    state = TrainState(settings, DataSpec(("a",), 3, 3), torch.device("cpu"))
    state.images_seen = 24
    run.log(evaluation(figures, images=16))
    run.log(evaluation(LIVELY if silent else SILENT, images=32))  # of later
    save(run, state, figures if measured else {})
    command = ["demo@24", "--model", "one", "--storage", run.store.uri]
    done = CliRunner().invoke(promote.app, command)
    assert done.exit_code == 0
    assert (TOLD in done.stderr) == silent
    assert done.stdout == f"model `one` is demo@24 ({Checkpoint(run, 24).manifest().digest[:12]})\n"

"""`run.precision: auto`: what is measured, what is taken, and that a run keeps to it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.batch import Batch
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.runs.checkpoint import checkpoints, save
from cluster.runs.run import Run
from cluster.training import precision
from cluster.training.precision import resolved
from cluster.training.world import ProcessWorld
from tests.support.loop_runs import CPU, go, of_kind, run_in
from tests.support.tiny_runs import tiny_settings

FLOAT32, BFLOAT16 = ("float32", False), ("bfloat16", True)


class Second(ProcessWorld):
    """Worker 1 of two, which hears what worker 0 took."""

    def __init__(self, heard: int) -> None:
        super().__init__()
        self.rank, self.heard = 1, heard

    def agree(self, number: int) -> int:
        return self.heard


@pytest.fixture
def auto(data: Path) -> Settings:
    return tiny_settings(data, {"run.precision": "auto"})


def taken(settings: Settings, run: Run, world: ProcessWorld | None = None) -> tuple[str, bool]:
    """What a run of these settings trains in: its precision, and whether channels are last."""
    pairs = Pairs(settings.data.train, 32)
    found = resolved(settings, run, pairs, world or ProcessWorld(), CPU).run
    return found.precision, found.channels_last


def measure(
    monkeypatch: pytest.MonkeyPatch, bfloat16_s: float, gradient: tuple[float, float]
) -> None:
    """Steps take a second in float32 and as long as said in bfloat16; gradients are as said."""

    def timed(state: TrainState, batch: Batch, world: Any) -> float:
        index = int(state.settings.run.precision == "bfloat16")
        world.last = torch.tensor([1.0, gradient[0]]) if not index else torch.tensor(
            [1.0, gradient[1]]
        )  # fmt: skip
        return (1.0, bfloat16_s)[index]

    monkeypatch.setattr(precision, "_time", timed)


def unmeasured(*_: object) -> int:
    raise AssertionError("nothing is measured here")


@pytest.mark.parametrize(
    ("bfloat16_s", "gradient", "wanted"),
    [
        (0.5, (1.0, 1.01), BFLOAT16),
        (0.95, (1.0, 1.01), FLOAT32),  # hardly faster
        (1.5, (1.0, 1.0), FLOAT32),
        (0.5, (1.0, 1.5), FLOAT32),  # fast and wrong
        (0.5, (1.0, float("nan")), FLOAT32),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster_and_agrees(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    auto: Settings,
    bfloat16_s: float,
    gradient: tuple[float, float],
    wanted: tuple[str, bool],
) -> None:
    measure(monkeypatch, bfloat16_s, gradient)
    assert taken(auto, run_in(tmp_path)) == wanted


def test_what_is_set_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "_measured", unmeasured)
    for text in ("float32", "bfloat16", "float64"):
        settings = tiny_settings(data, {"run.precision": text})
        assert taken(settings, run_in(tmp_path)) == (text, False)


@pytest.mark.parametrize(("heard", "wanted"), [(0, FLOAT32), (1, BFLOAT16)])
def test_another_worker_takes_what_the_first_one_took(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    auto: Settings,
    heard: int,
    wanted: tuple[str, bool],
) -> None:
    monkeypatch.setattr(precision, "_measured", unmeasured)
    assert taken(auto, run_in(tmp_path), Second(heard)) == wanted


@pytest.mark.parametrize("faster", [FLOAT32, BFLOAT16])
def test_a_resumed_run_keeps_what_it_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, auto: Settings, faster: tuple[str, bool]
) -> None:
    measure(monkeypatch, 0.5 if faster == BFLOAT16 else 2.0, (1.0, 1.0))
    run = run_in(tmp_path)
    pairs = Pairs(auto.data.train, 32)
    settings = resolved(auto, run, pairs, ProcessWorld(), CPU)
    for images in (4, 8):
        state = TrainState(settings, pairs.spec, CPU)
        state.images_seen = images
        save(run, state, {})
    monkeypatch.setattr(precision, "_measured", unmeasured)
    assert taken(auto, run) == faster
    newest = checkpoints(run)[-1]
    (Path(run.store.uri) / newest.key("MANIFEST.json")).write_bytes(b"damaged")
    assert taken(auto, run) == faster, "by the checkpoint before the damaged one"


def test_a_run_measures_once_and_ends(data: Path, tmp_path: Path) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data, {"run.precision": "auto"})
    assert go(run, settings) == "finished"
    assert go(run, settings) == "finished"
    (precision_now,) = {record["precision"] for record in of_kind(run, "start")}
    assert precision_now in {"float32", "bfloat16"}
    assert {found.manifest().settings["run"]["precision"] for found in checkpoints(run)} == {
        precision_now
    }

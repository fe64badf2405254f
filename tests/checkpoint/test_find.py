"""The ways to name a checkpoint, and what is said where there is none."""

from pathlib import Path

import pytest

from aalnet.errors import CheckpointError, ConfigError
from aalnet.state import TrainState
from cluster.runs.checkpoint import Checkpoint, by_figure, checkpoints, find_checkpoint
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.tiny_checkpoints import (
    assert_refused,
    checkpoint_at,
    folder_of,
)


@pytest.fixture
def three(run: Run, state: TrainState) -> Run:
    for images, score in ((8, 0.3), (16, 0.1), (1600, 0.2)):
        checkpoint_at(run, state, images, energy_score=score)
    return run


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("demo", 1600),
        ("demo@16", 16),
        ("demo@1600", 1600),
        ("demo@1,600", 1600),
        ("demo@1_600", 1600),
        ("demo@best", 16),
        ("{root}/runs/demo", 1600),
        ("{root}/runs/demo/", 1600),
        ("{root}/runs/demo/checkpoints/8", 8),
        ("{root}/runs/demo/checkpoints/8/", 8),
    ],
)
def test_the_ways_to_name_a_checkpoint(three: Run, tmp_path: Path, name: str, images: int) -> None:
    found = find_checkpoint(three.store, name.format(root=tmp_path))
    assert (found.run.name, found.images) == ("demo", images)
    assert found.manifest().images_seen == images


def test_a_path_is_read_from_here_and_from_any_storage(
    three: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = FolderStore(tmp_path / "elsewhere")
    assert find_checkpoint(elsewhere, "runs/demo/checkpoints/16").images == 16
    assert find_checkpoint(elsewhere, f"{three.uri}/checkpoints/8").images == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmeo", ["`dmeo` does not exist", "did you mean `demo`?"]),
        ("nothing-like-it", ["does not exist", "aalnet runs list"]),
        ("demo@17", ["no checkpoint at 17", "8, 16, 1600"]),
        ("demo@newest", ["no checkpoint at newest", "8, 16, 1600"]),
        ("{root}/runs/demo/checkpoints/9", ["no checkpoint at 9"]),
        ("{root}/runs/other/checkpoints/9", ["`other` does not exist"]),
    ],
)
def test_a_checkpoint_that_is_not_there(
    three: Run, tmp_path: Path, name: str, words: list[str]
) -> None:
    assert_refused(lambda: find_checkpoint(three.store, name.format(root=tmp_path)), *words)


@pytest.mark.parametrize("name", ["../demo", "a/b", "", "-x", "x" * 64, "a b", "a\nb", "@8"])
def test_a_name_that_can_be_no_run(run: Run, name: str) -> None:
    with pytest.raises((ConfigError, CheckpointError)):
        find_checkpoint(run.store, name)


def test_a_run_without_a_checkpoint(run: Run) -> None:
    assert_refused(lambda: find_checkpoint(run.store, "demo"), "no checkpoint yet")


def test_other_folders_are_no_checkpoints(three: Run) -> None:
    top = folder_of(Checkpoint(three, 8)).parent
    for name in ("latest", "-5", "1e3", ".hidden"):
        (top / name).mkdir()
        (top / name / "MANIFEST.json").write_text("{}")
    (top / "5").mkdir()
    (top / "5" / "ema-0123456789abcdef.safetensors").write_bytes(b"")
    assert [found.images for found in checkpoints(three)] == [8, 16, 1600]


@pytest.mark.parametrize("value", [10**400, "0.1", None, True, [], float("nan"), float("inf")])
def test_a_figure_that_is_no_figure_is_nobodys_best(
    run: Run, state: TrainState, value: object
) -> None:
    good = checkpoint_at(run, state, 8, energy_score=5.0)
    odd = checkpoint_at(run, state, 12, energy_score=value)  # type: ignore[arg-type]
    best = by_figure([good, odd], "energy_score")
    assert best[-1] == good
    assert len(best) == (2 if value is True else 1)

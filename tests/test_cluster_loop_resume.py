"""A run goes on bit for bit after a kill, and from the checkpoint before a damaged one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aalnet.batch import Batch
from aalnet.corners import CORNERS
from aalnet.errors import CheckpointError
from aalnet.evaluation import Figures
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.runs.checkpoint import checkpoints, save
from cluster.runs.log import RunLog
from cluster.runs.run import Run
from cluster.runs.saver import Saver
from cluster.training import recorder as keeper
from tests.support.loop_runs import (
    CPU,
    LASTING,
    QUARTERS,
    assert_same_run,
    blobs,
    break_batch,
    go,
    of_kind,
    run_in,
    whole_run,
)
from tests.support.tiny_runs import tiny_settings, without_clocks


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole_run(tmp_path_factory.mktemp("whole"), data)


def killed(batch: Batch) -> Batch:
    raise RuntimeError("killed here")


def go_and_die(run: Run, settings: Settings, position: int) -> None:
    """Train to a position and end there without a word; what had been asked for is written."""
    books: list[Saver | RunLog] = []

    def recorded(kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(*arguments: Any) -> Any:
            books.append(kind(*arguments))
            return books[-1]

        return make

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "Saver", recorded(Saver))
        patch.setattr(keeper, "RunLog", recorded(RunLog))
        break_batch(patch, position, killed)
        with pytest.raises(RuntimeError, match="killed here"):
            go(run, settings)
    for book in reversed(books):
        book.close()


# After a kill


def test_the_same_run_twice_is_the_same(data: Path, tmp_path: Path, whole: Run) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data))
    assert_same_run(run, whole)


@pytest.mark.parametrize("position", [4, 16, 20, 28])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    data: Path, tmp_path: Path, whole: Run, position: int
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go_and_die(run, settings, position)
    assert [found.images for found in checkpoints(run)] == ([16] if position >= 16 else [])
    assert run.status() == "running", "nobody had the time to say that it stopped"
    go(run, settings)
    assert_same_run(run, whole)


def test_killed_as_soon_as_the_checkpoint_is_whole(data: Path, tmp_path: Path, whole: Run) -> None:
    def die(images: int, figures: Figures) -> None:
        end_s = time.monotonic() + 20
        while not of_kind(run, "checkpoint") and time.monotonic() < end_s:
            time.sleep(0.01)
        raise Killed

    run, settings = run_in(tmp_path), tiny_settings(data)
    with pytest.raises(Killed):
        go(run, settings, die)
    assert [found.images for found in checkpoints(run)] == [16]
    run.store.append(run.key("metrics.jsonl"), b'{"kind": "train", "images": 2')
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("phases", [{}, QUARTERS], ids=["all terms", "phases"])
def test_killed_in_every_interval(data: Path, tmp_path: Path, phases: dict[str, Any]) -> None:
    """By phases, each interval is one: D's optimizer holds nothing in the first checkpoints."""
    changes = {"run.log_every_images": 12, "run.checkpoint_every_images": 8, "run.keep_last": 9}
    settings = tiny_settings(data, changes | phases)
    whole = run_in(tmp_path, "whole")
    go(whole, settings)
    run = run_in(tmp_path, "killed")
    for position in (8, 12, 20, 28):
        go_and_die(run, settings, position)
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("model", sorted(CORNERS.keys() - {"aalnet"}))
def test_the_other_models_resume_exactly_too(data: Path, tmp_path: Path, model: str) -> None:
    settings = tiny_settings(data, {"model": model})
    whole, run = run_in(tmp_path, "whole"), run_in(tmp_path, "killed")
    go(whole, settings)
    go_and_die(run, settings, 24)
    go(run, settings)
    assert_same_run(run, whole)


def test_a_finished_run_does_nothing_more(data: Path, tmp_path: Path) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go(run, settings)
    before, records = blobs(checkpoints(run)[-1]), run.records()
    go(run, settings)
    assert blobs(checkpoints(run)[-1]) == before
    for kind in LASTING:
        assert without_clocks(run.records(), [kind]) == without_clocks(records, [kind])
    assert run.status() == "finished"


def test_a_longer_wait_between_records_does_not_change_the_run(
    data: Path, tmp_path: Path, whole: Run
) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data, {"run.log_every_images": 1000, "run.checkpoint_every_images": 5}))
    ours, theirs = blobs(checkpoints(run)[-1]), blobs(checkpoints(whole)[-1])
    tensors = [name for name in ours if name.endswith(".safetensors")]
    assert len(tensors) == 2
    assert all(ours[name] == theirs[name] for name in tensors)


# From a damaged checkpoint


@pytest.mark.parametrize("part", ["ema", "training", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    data: Path, tmp_path: Path, whole: Run, part: str
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go(run, settings)
    newest = checkpoints(run)[-1]
    name = "MANIFEST.json" if part == "manifest" else newest.manifest().blobs[part].name
    (Path(run.store.uri) / newest.key(name)).write_bytes(b"damaged")
    assert go(run, settings) == "finished"
    assert [record["images"] for record in of_kind(run, "start")] == [0, 16]
    (warning,) = (r for r in of_kind(run, "warning") if "passed over" in r["text"])
    assert warning["text"].startswith("checkpoint at 32 images is passed over: ")
    assert newest.key(name) in warning["text"]
    assert_same_run(run, whole)


def test_where_all_are_damaged_the_run_stops_by_name(data: Path, tmp_path: Path) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go(run, settings)
    for found in checkpoints(run):
        name = found.manifest().blobs["ema"].name
        (Path(run.store.uri) / found.key(name)).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no checkpoint of run `demo` can be used.*16/ema-"):
        go(run, settings)


def test_a_damaged_one_ahead_never_pushes_out_a_whole_one(data: Path, tmp_path: Path) -> None:
    changes = {"run.keep_last": 1, "run.keep_best": 0}
    run, settings = run_in(tmp_path), tiny_settings(data, changes)
    go(run, settings)
    assert [found.images for found in checkpoints(run)] == [32]
    (Path(run.store.uri) / checkpoints(run)[-1].key("MANIFEST.json")).write_bytes(b"damaged")
    go_early = tiny_settings(data, changes | {"run.checkpoint_every_images": 8})
    with pytest.raises(CheckpointError):
        go(run, settings)
    save(run, TrainState(settings, Pairs(settings.data.train, 32).spec, CPU), {})
    go_and_die(run, go_early, 12)
    assert [found.images for found in checkpoints(run)] == [8, 32]
    go(run, settings)
    assert [found.images for found in checkpoints(run)] == [32]
    checkpoints(run)[-1].manifest()

"""The loop without Ray: a run to its end, or to the step where it is asked to stop."""

import math
from pathlib import Path

import pytest

from aalnet.evaluation import Figures
from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from cluster.training.world import ProcessWorld
from tests.support.loop_runs import (
    assert_same_run,
    before_step,
    blobs,
    go,
    of_kind,
    run_in,
    whole_run,
)
from tests.support.tiny_runs import tiny_settings


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole_run(tmp_path_factory.mktemp("whole"), data)


# A whole run


def test_evaluations_may_be_rarer_than_checkpoints(data: Path, tmp_path: Path) -> None:
    rare = {"run.checkpoint_every_images": 8, "run.evaluate_every_images": 16, "run.images": 40}
    run = run_in(tmp_path)
    assert go(run, tiny_settings(data, rare), lambda images, figures: None) == "finished"
    assert [record["images"] for record in of_kind(run, "checkpoint")] == [8, 16, 24, 32, 40]
    assert [record["images"] for record in of_kind(run, "evaluation")] == [16, 32, 40]
    assert sorted(run.samples()) == [16, 32, 40]


@pytest.mark.parametrize("model", ["aalnet", "gan", "vae"])
def test_every_model_runs_to_its_end(data: Path, tmp_path: Path, model: str) -> None:
    settings = tiny_settings(data, {"model": model, "data.balanced_labels": True})
    run = run_in(tmp_path)
    told: list[tuple[int, Figures]] = []

    assert go(run, settings, lambda *figures: told.append(figures)) == "finished"

    aside = {"checkpoint", "warning"}  # there is one: four held-out pairs are few
    records = [record for record in run.records() if record["kind"] not in aside]
    assert [record["kind"] for record in records] == [
        "start", "train", "train", "evaluation", "train", "train", "evaluation", "end",
    ]  # fmt: skip
    assert [record["images"] for record in records] == [0, 8, 16, 16, 24, 32, 32, 32]
    saved = of_kind(run, "checkpoint")  # from the background: anywhere after their evaluation
    assert [record["images"] for record in saved] == [16, 32]
    for record in saved:
        assert record["bytes"] == Checkpoint(run, record["images"]).manifest().size_bytes
        assert 0 < record["stall_s"] < record["seconds"]
    assert records[0] | {"model": model, "workers": 1, "device": "cpu"} == records[0]
    assert records[-1]["status"] == run.status() == "finished"
    for record in records:
        values = record.get("terms", {}).values()
        assert all(math.isfinite(value) for value in values)
    assert {"generator_norm"} <= records[1]["terms"].keys()
    assert [(images, figures["images"]) for images, figures in told] == [(16, 4), (32, 4)]
    assert [found.images for found in checkpoints(run)] == [16, 32]
    assert list(run.samples()) == [16, 32]


def test_the_terms_of_aalnet_are_all_logged(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data))
    terms = set().union(*(record["terms"] for record in run.records() if "terms" in record))
    assert terms == {
        "log_likelihood", "realism", "entropy", "offset", "reward", "density_flatness",
        "response", "separation", "discriminator_accuracy", "real_accuracy", "fake_accuracy",
        "discriminator_offset", "image_gradient", "generator_norm", "discriminator_norm",
    }  # fmt: skip


def test_a_run_ends_at_a_whole_batch(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data, {"run.images": 18, "run.checkpoint_every_images": 1000}))
    assert [found.images for found in checkpoints(run)] == [20]
    assert run.records()[-1]["images"] == 20


def test_old_checkpoints_are_pruned(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    changes = {"run.checkpoint_every_images": 4, "run.keep_last": 1, "evaluation.max_images": 4}
    go(run, tiny_settings(data, changes))
    assert len(checkpoints(run)) <= 2
    assert checkpoints(run)[-1].images == 32


# Stopping


@pytest.mark.parametrize("position", [0, 12, 16, 24])
def test_a_stopped_run_loses_no_step_and_goes_on_bit_for_bit(
    data: Path, tmp_path: Path, whole: Run, position: int
) -> None:
    run, settings, world = run_in(tmp_path), tiny_settings(data), ProcessWorld()
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, position, lambda: setattr(world, "stop_requested", True))
        assert go(run, settings, world=world) == "stopped"
    end = run.records()[-1]
    assert end | {"kind": "end", "status": "stopped"} == end
    assert run.status() == "stopped"
    assert "error" not in end
    newest = checkpoints(run)[-1].images
    assert newest == end["images"] == of_kind(run, "train")[-1]["images"] == position + 4
    assert go(run, settings) == "finished"
    assert of_kind(run, "start")[-1]["images"] == newest
    ours, theirs = blobs(checkpoints(run)[-1]), blobs(checkpoints(whole)[-1])
    assert {n for n in ours if n != "MANIFEST.json"} == {n for n in theirs if n != "MANIFEST.json"}


def test_a_wish_to_stop_at_the_last_step_changes_nothing(
    data: Path, tmp_path: Path, whole: Run
) -> None:
    world = ProcessWorld()
    run, settings = run_in(tmp_path), tiny_settings(data)

    def stop_at_the_end(images: int, figures: Figures) -> None:
        world.stop_requested = bool(run.samples()) and 32 in run.samples()

    assert go(run, settings, stop_at_the_end, world) == "finished"
    assert_same_run(run, whole)


def test_a_node_that_is_taken_gets_a_checkpoint_at_every_record(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    changes = {"run.checkpoint_every_images": 1000, "run.log_every_images": 4, "run.keep_last": 99}
    asked: list[bool] = []

    def taken() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    go(run, tiny_settings(data, changes), node_is_draining=taken)
    assert len(asked) == 7, "once a record, but not at the last one, which saves by itself"
    assert [found.images for found in checkpoints(run)] == [12, 32]
    assert checkpoints(run)[0].manifest().figures == {}

"""The loop without Ray: resume bit for bit, failures that stop, and two processes as one."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from aalnet.batch import Batch
from aalnet.errors import CheckpointError, DataError, NonFiniteError
from aalnet.evaluation import Figures
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster import reader
from cluster.checkpoint import Checkpoint, checkpoints, restore, save
from cluster.data import Pairs
from cluster.loop import train
from cluster.runs import Run
from cluster.store import FolderStore
from cluster.world import ProcessWorld, current_world
from tests.tiny_runs import noise_rows, tiny_settings, without_clocks, write_data, write_pairs

CPU = torch.device("cpu")
LASTING = ("train", "evaluation", "checkpoint")  # kinds of records that a resumption repeats


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def run_in(folder: Path, name: str = "demo") -> Run:
    return Run(FolderStore(folder), name)


def go(run: Run, settings: Settings, report: Callable[[Figures], None] | None = None) -> None:
    run.claim(settings)
    train(run, settings, ProcessWorld(), CPU, report or (lambda figures: None))


def blobs(found: Checkpoint) -> dict[str, bytes]:
    folder = Path(found.run.store.uri) / found.key()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def break_batch(
    monkeypatch: pytest.MonkeyPatch, position: int, change: Callable[[Batch], Batch]
) -> None:
    """Pass the batch that starts at a position of the run through `change`."""
    whole = reader.make_batch

    def made(*arguments: Any) -> Batch:
        batch = whole(*arguments)
        return change(batch) if arguments[3] == position else batch

    monkeypatch.setattr(reader, "make_batch", made)


def killed(batch: Batch) -> Batch:
    raise RuntimeError("killed here")


def poisoned(batch: Batch) -> Batch:
    batch.target[0, 0, 0, 0] = math.nan
    return batch


# A whole run


@pytest.mark.parametrize("model", ["aalnet", "gan", "vae"])
def test_every_model_runs_to_its_end(data: Path, tmp_path: Path, model: str) -> None:
    settings = tiny_settings(data, {"model": model, "data.balanced_labels": True})
    run = run_in(tmp_path)
    told: list[Figures] = []

    go(run, settings, told.append)

    records = run.records()
    assert [record["kind"] for record in records] == [
        "start", "train", "train", "evaluation", "checkpoint", "train", "train", "evaluation",
        "checkpoint", "end",
    ]  # fmt: skip
    assert [record["images"] for record in records] == [0, 8, 16, 16, 16, 24, 32, 32, 32, 32]
    assert records[0] | {"model": model, "workers": 1, "device": "cpu"} == records[0]
    assert records[-1]["status"] == run.status() == "finished"
    for record in records:
        values = record.get("terms", {}).values()
        assert all(math.isfinite(value) for value in values)
    assert {"generator_norm"} <= records[1]["terms"].keys()
    assert [figures["images"] for figures in told] == [4, 4]
    assert [found.images for found in checkpoints(run)] == [16, 32]
    assert list(run.samples()) == [16, 32]


def test_the_terms_of_aalnet_are_all_logged(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data))
    terms = set().union(*(record["terms"] for record in run.records() if "terms" in record))
    assert terms == {
        "log_likelihood", "realism", "entropy", "offset", "reward", "density_flatness",
        "response", "separation", "discriminator_accuracy", "discriminator_offset",
        "image_gradient", "generator_norm", "discriminator_norm",
    }  # fmt: skip


def test_a_run_ends_at_a_whole_batch(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data, {"run.images": 18, "run.checkpoint_every_images": 1000}))
    assert [found.images for found in checkpoints(run)] == [20]
    assert run.records()[-2]["images"] == 20


def test_old_checkpoints_are_pruned(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    changes = {"run.checkpoint_every_images": 4, "run.keep_last": 1, "evaluation.max_images": 4}
    go(run, tiny_settings(data, changes))
    assert len(checkpoints(run)) <= 2
    assert checkpoints(run)[-1].images == 32


# Resuming


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_in(tmp_path_factory.mktemp("whole"))
    go(run, tiny_settings(data))
    return run


def assert_same_run(run: Run, whole: Run) -> None:
    assert without_clocks(run.records(), LASTING) == without_clocks(whole.records(), LASTING)
    assert run.status() == "finished"
    ours, theirs = checkpoints(run)[-1], checkpoints(whole)[-1]
    assert ours.images == theirs.images
    assert blobs(ours) == blobs(theirs)
    samples = [run.store.read(key) for key in run.samples().values()]
    assert samples == [whole.store.read(key) for key in whole.samples().values()]


def test_the_same_run_twice_is_the_same(data: Path, tmp_path: Path, whole: Run) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data))
    assert_same_run(run, whole)


@pytest.mark.parametrize("position", [4, 16, 20, 28])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    data: Path, tmp_path: Path, whole: Run, position: int
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    with pytest.MonkeyPatch.context() as patch:
        break_batch(patch, position, killed)
        with pytest.raises(RuntimeError, match="killed here"):
            go(run, settings)
    assert [found.images for found in checkpoints(run)] == ([16] if position >= 16 else [])
    assert run.status() == "running", "nobody had the time to say that it stopped"
    go(run, settings)
    assert_same_run(run, whole)


def test_killed_as_soon_as_the_checkpoint_is_whole(data: Path, tmp_path: Path, whole: Run) -> None:
    def die(figures: Figures) -> None:
        raise Killed

    run, settings = run_in(tmp_path), tiny_settings(data)
    with pytest.raises(Killed):
        go(run, settings, die)
    run.store.append(run.key("metrics.jsonl"), b'{"kind": "train", "images": 2')
    go(run, settings)
    assert_same_run(run, whole)


def test_killed_in_every_interval(data: Path, tmp_path: Path) -> None:
    changes = {"run.log_every_images": 12, "run.checkpoint_every_images": 8, "run.keep_last": 9}
    settings = tiny_settings(data, changes)
    whole = run_in(tmp_path, "whole")
    go(whole, settings)
    run = run_in(tmp_path, "killed")
    for position in (8, 12, 20, 28):
        with pytest.MonkeyPatch.context() as patch:
            break_batch(patch, position, killed)
            with pytest.raises(RuntimeError, match="killed here"):
                go(run, settings)
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_the_baselines_resume_exactly_too(data: Path, tmp_path: Path, model: str) -> None:
    settings = tiny_settings(data, {"model": model})
    whole, run = run_in(tmp_path, "whole"), run_in(tmp_path, "killed")
    go(whole, settings)
    with pytest.MonkeyPatch.context() as patch:
        break_batch(patch, 24, killed)
        with pytest.raises(RuntimeError, match="killed here"):
            go(run, settings)
    go(run, settings)
    assert_same_run(run, whole)


def test_a_finished_run_does_nothing_more(data: Path, tmp_path: Path) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go(run, settings)
    before, records = blobs(checkpoints(run)[-1]), run.records()
    go(run, settings)
    assert blobs(checkpoints(run)[-1]) == before
    assert without_clocks(run.records(), LASTING) == without_clocks(records, LASTING)
    assert run.status() == "finished"


def test_a_longer_wait_between_records_does_not_change_the_run(
    data: Path, tmp_path: Path, whole: Run
) -> None:
    run = run_in(tmp_path)
    go(run, tiny_settings(data, {"run.log_every_images": 1000, "run.checkpoint_every_images": 5}))
    ours, theirs = blobs(checkpoints(run)[-1]), blobs(checkpoints(whole)[-1])
    tensors = [name for name in ours if name.endswith(".safetensors")]
    assert len(tensors) == 5
    assert all(ours[name] == theirs[name] for name in tensors)


def test_a_damaged_checkpoint_stops_the_resumption_by_name(data: Path, tmp_path: Path) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    go(run, settings)
    found = checkpoints(run)[-1]
    (Path(run.store.uri) / found.key("ema.safetensors")).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"cannot resume run `demo`.*ema\.safetensors"):
        go(run, settings)


# Failures


def test_a_target_that_is_nan_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    break_batch(monkeypatch, 24, poisoned)

    with pytest.raises(NonFiniteError) as caught:
        go(run, settings)

    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    assert "nan at 24 images" in message
    assert "log_likelihood" in message
    assert "Last whole checkpoint of `demo`: 16 images" in message
    end = run.records()[-1]
    assert end | {"kind": "end", "images": 24, "status": "failed", "error": message} == end
    assert run.status() == "failed"
    (found,) = checkpoints(run)
    assert found.images == 16
    restore(TrainState(settings, Pairs(settings.data.train, 32).spec, CPU), found)


def test_a_nan_run_goes_on_once_the_cause_is_gone(
    data: Path, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    with pytest.MonkeyPatch.context() as patch:
        break_batch(patch, 24, poisoned)
        with pytest.raises(NonFiniteError):
            go(run, settings)
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("model", ["aalnet", "gan", "vae"])
def test_a_parameter_that_is_nan_stops_the_run(data: Path, tmp_path: Path, model: str) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data, {"model": model})
    state = TrainState(settings, Pairs(settings.data.train, 32).spec, CPU)
    with torch.no_grad():
        state.generator.output.weight[0, 0, 0, 0] = math.nan
    state.images_seen, state.steps = 16, 4
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    save(run, state, {})
    before = blobs(checkpoints(run)[-1])
    with pytest.raises(NonFiniteError, match="nan at 16 images"):
        go(run, settings)
    assert run.status() == "failed"
    assert [found.images for found in checkpoints(run)] == [16]
    assert blobs(checkpoints(run)[-1]) == before


def test_a_damaged_picture_stops_the_run(tmp_path: Path) -> None:
    rows = noise_rows(13)
    rows[12]["condition"] = b"damaged"
    write_data(tmp_path)
    write_pairs(tmp_path / "train.parquet", rows)
    run = run_in(tmp_path)
    with pytest.raises(DataError, match="`row-12`"):
        go(run, tiny_settings(tmp_path))
    lazy = {"data.memory_budget_mib": 1, "data.size_px": 256}
    run = run_in(tmp_path, "lazy")
    with pytest.raises(DataError, match="`row-12`"):
        go(run, tiny_settings(tmp_path, lazy))
    assert run.records()[-1]["status"] == "failed"
    assert "`row-12`" in run.records()[-1]["error"]


# Two processes as one


TWENTY = {
    "data.batch_images": 5,  # uneven slices
    "data.balanced_labels": True,
    "data.noised_share": 0.3,
    "objective.K": 3,
    "run.images": 100,
    "run.checkpoint_every_images": 100,
    "run.log_every_images": 5,
}


def work(rank: int, size: int, folder: str, values: list[dict[str, Any]]) -> None:
    """One of `size` processes: runs every settings in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    counts = []
    for number, value in enumerate(values):
        world = current_world()
        run = run_in(Path(folder), f"two-{number}")
        train(run, Settings.model_validate(value), world, CPU, lambda figures: None)
        counts.append(world.all_reduces)
    Path(folder, f"{rank}.json").write_text(json.dumps(counts))
    dist.destroy_process_group()
    # A gloo thread that lets go of a tensor while Python ends aborts the process, once in a while.
    os._exit(0)


def parameters(run: Run) -> Tensor:
    found = checkpoints(run)[-1]
    names = [name for name in found.manifest()["files"] if name.endswith(".safetensors")]
    networks = sorted(name.partition(".")[0] for name in names if "optimizer" not in name)
    tensors = [found.tensors(name) for name in networks]
    return torch.cat([t[key].double().flatten() for t in tensors for key in sorted(t)])


FOUR = {"run.precision": "float64", "run.images": 20}
VARIANTS: list[tuple[str, dict[str, Any], float]] = [
    ("aalnet in float64", {"run.precision": "float64"}, 1e-9),
    ("aalnet in float32", {}, 1e-3),
    ("aalnet with exact penalties", FOUR | {"objective.penalty_method": "exact"}, 1e-9),
    ("gan", FOUR | {"model": "gan"}, 1e-9),
    ("vae", FOUR | {"model": "vae"}, 1e-9),
]
ALL_REDUCES = {  # in two steps
    "aalnet": 2 * 2 + 2,  # D's and G's gradients; both penalties in every second step
    "gan": 2 * 2,
    "vae": 2,
}
AROUND_STEPS = 2 + 1  # resuming, and one checkpoint


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes, which take 3 and 2 of each 5 conditions."""
    folder = tmp_path_factory.mktemp("two")
    values = [tiny_settings(data, TWENTY | changes).to_dict() for _, changes, _ in VARIANTS]
    torch.multiprocessing.spawn(work, (2, str(folder), values), nprocs=2)
    return folder


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=[name for name, *_ in VARIANTS])
def test_two_processes_train_as_one_does(
    data: Path, two: Path, tmp_path: Path, number: int
) -> None:
    _, changes, tolerance = VARIANTS[number]
    settings = tiny_settings(data, TWENTY | changes)
    alone, together = run_in(tmp_path), run_in(two, f"two-{number}")
    go(alone, settings)

    one, other = parameters(alone), parameters(together)
    assert float((one - other).norm() / one.norm()) <= tolerance

    first, second = (
        next(record["terms"] for record in run.records() if record["kind"] == "train")
        for run in (alone, together)
    )
    assert first.keys() == second.keys()
    for name in first:
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-7), name
    assert [record["workers"] for record in together.records() if record["kind"] == "start"] == [2]

    counts = [json.loads((two / f"{rank}.json").read_text())[number] for rank in range(2)]
    steps = settings.run.images // settings.data.batch_images
    assert counts == [steps // 2 * ALL_REDUCES[settings.model] + AROUND_STEPS] * 2


def test_alone_there_is_no_all_reduce(data: Path, tmp_path: Path) -> None:
    world, settings = ProcessWorld(), tiny_settings(data)
    run = run_in(tmp_path)
    run.claim(settings)
    train(run, settings, world, CPU, lambda figures: None)
    assert world.all_reduces == 0
    assert world.agree(7, CPU) == 7

"""The loop without Ray: resume bit for bit, failures that stop, and two processes as one."""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from aalnet.batch import Batch
from aalnet.errors import AalnetError, CheckpointError, DataError, NonFiniteError
from aalnet.evaluation import Figures
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.data import reader
from cluster.data.pairs import Pairs
from cluster.runs.checkpoint import Checkpoint, checkpoints, restore, save
from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run
from cluster.runs.saver import Saver, StorePatienceSpent
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from cluster.training import loop
from cluster.training import recorder as keeper
from cluster.training.loop import train
from cluster.training.recorder import Launch, Report
from cluster.training.world import ProcessWorld, current_world
from tests.support.tiny_runs import (
    noise_rows,
    tiny_settings,
    without_clocks,
    write_data,
    write_pairs,
)

CPU = torch.device("cpu")
LASTING = ("train", "evaluation", "checkpoint")  # kinds of records that a resumption repeats


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def run_in(folder: Path, name: str = "demo") -> Run:
    return Run(FolderStore(folder), name)


def go(
    run: Run,
    settings: Settings,
    report: Report | None = None,
    world: ProcessWorld | None = None,
    **launch: Any,
) -> str:
    run.claim(settings)
    told = report or (lambda images, figures: None)
    return train(run, settings, world or ProcessWorld(), CPU, told, Launch(time.time(), **launch))


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


def of_kind(run: Run, kind: str) -> list[Record]:
    return [record for record in run.records() if record["kind"] == kind]


def blobs(found: Checkpoint) -> dict[str, bytes]:
    folder = Path(found.run.store.uri) / found.key()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def break_batch(
    monkeypatch: pytest.MonkeyPatch, position: int, change: Callable[[Batch], Batch]
) -> None:
    """Pass the batch that starts at a position of the run through `change`."""
    whole = reader.BatchMaker.make

    def made(maker: reader.BatchMaker, first: int, offsets: range) -> Batch:
        batch = whole(maker, first, offsets)
        return change(batch) if first == position else batch

    monkeypatch.setattr(reader.BatchMaker, "make", made)


def before_step(monkeypatch: pytest.MonkeyPatch, position: int, do: Callable[[], object]) -> None:
    """Do something before the step at a position of the run; batches are read further ahead."""
    whole = loop.STEPS["aalnet"]

    def step(state: TrainState, batch: Batch, world: ProcessWorld) -> Any:
        if state.images_seen == position:
            do()
        return whole(state, batch, world)

    monkeypatch.setitem(loop.STEPS, "aalnet", step)


def killed(batch: Batch) -> Batch:
    raise RuntimeError("killed here")


def poisoned(batch: Batch) -> Batch:
    floats = batch.to(CPU, torch.float32)  # bytes cannot hold it
    floats.target[0, 0, 0, 0] = math.nan
    return floats


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

    records = [record for record in run.records() if record["kind"] != "checkpoint"]
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


# Resuming


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_in(tmp_path_factory.mktemp("whole"))
    go(run, tiny_settings(data))
    return run


def assert_same_run(run: Run, whole: Run) -> None:
    for kind in LASTING:
        assert without_clocks(run.records(), [kind]) == without_clocks(whole.records(), [kind])
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


def test_killed_in_every_interval(data: Path, tmp_path: Path) -> None:
    changes = {"run.log_every_images": 12, "run.checkpoint_every_images": 8, "run.keep_last": 9}
    settings = tiny_settings(data, changes)
    whole = run_in(tmp_path, "whole")
    go(whole, settings)
    run = run_in(tmp_path, "killed")
    for position in (8, 12, 20, 28):
        go_and_die(run, settings, position)
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_the_baselines_resume_exactly_too(data: Path, tmp_path: Path, model: str) -> None:
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


# A storage that fails


class Failing(FolderStore):
    """A folder that takes no more writes from the first sample grid on, until it is repaired."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.down, self.met = False, threading.Event()

    def _written(self, key: str, path: Path, data: bytes) -> Any:
        self._check(key)
        return super()._written(key, path, data)

    def append(self, key: str, data: bytes) -> None:
        self._check(key)
        super().append(key, data)

    def _check(self, key: str) -> None:
        if self.down:
            self.met.set()
            raise StoreError(f"nobody takes {key}")


def test_a_storage_that_fails_for_a_while_stops_nothing(
    data: Path, tmp_path: Path, whole: Run
) -> None:
    store = Failing(tmp_path)
    run, settings = Run(store, "demo"), tiny_settings(data)

    def repair() -> None:
        assert store.met.wait(20), "nobody has noticed"
        store.down = False

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 12, lambda: setattr(store, "down", True))
        before_step(patch, 28, repair)
        assert go(run, settings) == "finished"
    texts = [record["text"] for record in of_kind(run, "warning")]
    assert any(text.startswith("storage fails, training goes on: nobody takes") for text in texts)
    assert any(text.startswith("storage answers again, after ") for text in texts)
    for kind in ("train", "evaluation"):
        assert without_clocks(run.records(), [kind]) == without_clocks(whole.records(), [kind])
    assert run.status() == "finished"
    assert blobs(checkpoints(run)[-1]) == blobs(checkpoints(whole)[-1])
    assert list(run.samples()) == [16, 32]


def test_a_storage_that_never_comes_back_ends_the_run(data: Path, tmp_path: Path) -> None:
    store = Failing(tmp_path)
    run = Run(store, "demo")
    changes = {"run.images": 100_000, "run.log_every_images": 1000}
    settings = tiny_settings(data, changes).model_copy(
        update={"failures": Settings().failures.model_copy(update={"storage_patience_s": 0.2})}
    )
    run.claim(settings)

    def fail(images: int, figures: Figures) -> None:
        store.down = True

    started_at_s = time.monotonic()
    with pytest.raises(
        StorePatienceSpent, match=r"longer than failures\.storage_patience_s"
    ) as why:
        go(run, settings, fail)
    assert time.monotonic() - started_at_s < 60
    assert "nobody takes" in str(why.value)
    assert isinstance(why.value, AalnetError)
    assert why.value.exit_code == 1


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
        settings = Settings.model_validate(value)
        assert (
            train(run, settings, world, CPU, lambda images, figures: None, Launch(0.0))
            == "finished"
        )
        counts.append(world.all_reduces)
    Path(folder, f"{rank}.json").write_text(json.dumps(counts))
    ended = stopped_by_one(rank, run_in(Path(folder), "stopped"), values[0])
    Path(folder, f"{rank}.stopped.json").write_text(json.dumps(ended))
    dist.destroy_process_group()
    # A gloo thread that lets go of a tensor while Python ends aborts the process, once in a while.
    os._exit(0)


def stopped_by_one(rank: int, run: Run, value: dict[str, Any]) -> list[Any]:
    """Train until worker 1 is asked to stop; how it ended, and after how many sums."""
    world = current_world()

    settings = Settings.model_validate(value)
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 25, lambda: setattr(world, "stop_requested", rank == 1))
        status = train(run, settings, world, CPU, lambda images, figures: None, Launch(0.0))
    return [status, world.all_reduces]


def parameters(run: Run) -> Tensor:
    """All networks' numbers, without the optimizers'."""
    found = checkpoints(run)[-1]
    blobs = found.manifest().blobs
    tensors = found.tensors(blobs["ema"]) | found.tensors(blobs["training"])
    names = sorted(name for name in tensors if "optimizer/" not in name)
    assert {name.partition("/")[0] for name in names} > {"generator"}
    return torch.cat([tensors[name].double().flatten() for name in names])


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
AROUND_STEPS = 1 + 1  # resuming, and one checkpoint


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


def test_one_wish_stops_both_after_the_same_step(two: Path) -> None:
    first, second = (json.loads((two / f"{rank}.stopped.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == "stopped"
    run = run_in(two, "stopped")
    newest = checkpoints(run)[-1].images
    assert newest == 30
    assert run.records()[-1]["images"] == newest


def test_alone_there_is_no_all_reduce(data: Path, tmp_path: Path) -> None:
    world, settings = ProcessWorld(), tiny_settings(data)
    run = run_in(tmp_path)
    run.claim(settings)
    train(run, settings, world, CPU, lambda images, figures: None, Launch(time.time()))
    assert world.all_reduces == 0
    assert world.agree(7) == 7

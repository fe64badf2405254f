"""Two processes train as one does, stop after the same step, and sum as seldom as they can."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from aalnet.settings import Settings
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.training.loop import train
from cluster.training.recorder import Launch
from cluster.training.world import ProcessWorld, current_world
from tests.support.loop_runs import CPU, before_step, go, run_in
from tests.support.tiny_runs import tiny_settings

TWENTY = {
    "data.batch_images": 5,  # uneven slices
    "data.balanced_labels": True,
    "data.noised_share": 0.3,
    "objective.K": 3,
    "run.images": 100,
    "run.checkpoint_every_images": 100,
    "run.log_every_images": 5,
}
FOUR = {"run.precision": "float64", "run.images": 20}
PHASES = {  # five steps of each
    "objective.ignition_images": 25, "objective.entropy_from": 0.5,
    "objective.adversary_from": 0.75,
}  # fmt: skip
# G's gradients in every step, D's in the last phase; in every second step the flatness where the
# prior works, and there the response too.
SUMS_BY_PHASES = 20 + 5 + (2 + 2 + 3) + 3
VARIANTS: list[tuple[str, dict[str, Any], float, int]] = [  # and how often they sum
    ("aalnet in float64", PHASES | {"run.precision": "float64"}, 1e-9, SUMS_BY_PHASES),
    ("aalnet in float32", PHASES, 1e-3, SUMS_BY_PHASES),
    ("every term, exact penalties", FOUR | {"objective.penalty_method": "exact"}, 1e-9, 4 * 3),
    ("gan", FOUR | {"model": "gan"}, 1e-9, 4 * 2),
    ("vae", FOUR | {"model": "vae"}, 1e-9, 4),
    ("vae-gan", FOUR | {"model": "vae-gan"}, 1e-9, 4 * 2),
]
AROUND_STEPS = 1 + 1  # resuming, and one checkpoint


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes, which take 3 and 2 of each 5 conditions."""
    folder = tmp_path_factory.mktemp("two")
    values = [tiny_settings(data, TWENTY | changes).to_dict() for _, changes, *_ in VARIANTS]
    torch.multiprocessing.spawn(work, (2, str(folder), values), nprocs=2)
    return folder


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


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=[name for name, *_ in VARIANTS])
def test_two_processes_train_as_one_does(
    data: Path, two: Path, tmp_path: Path, number: int
) -> None:
    _, changes, tolerance, sums = VARIANTS[number]
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
    assert counts == [sums + AROUND_STEPS] * 2


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

"""Training on real Ray Train workers: their number changes nothing, and how runs end."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.launch.launcher import Placement, connected, train_here, train_with_ray
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.training.stop import Stop
from tests.slow.cluster.conftest import SIXTEEN, Training
from tests.support.repeats import repeats
from tests.support.s3_server import environment
from tests.support.tiny_runs import aalnet, noise_rows, tiny_settings, write_data, write_pairs

pytestmark = [
    pytest.mark.timeout(900),  # the first test waits for all that it trains
    # Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

TWENTY = {
    "data.batch_images": 5,  # uneven slices
    "data.noised_share": 0.3,
    "objective.K": 3,
    "run.images": 100,
    "run.checkpoint_every_images": 100,
    "run.log_every_images": 5,
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
WORKERS = {"float64": 3, "float32": repeats(0, 3)}  # 1 to so many
CASES = [(precision, workers) for precision, most in WORKERS.items()
         for workers in range(1, most + 1)]  # fmt: skip
Runs = dict[tuple[str, int], Run]


def name_of(precision: str, workers: int) -> str:
    return f"{precision}-{workers}"


def train_cases(folder: Path, address: str) -> None:
    """Train all cases; the body of a process, which joins Ray as a command does."""
    store = FolderStore(folder / "store")
    with connected(tiny_settings(folder, {"run.workers": 3}), address):
        for precision, workers in CASES:
            settings = tiny_settings(folder, TWENTY | {"run.precision": precision})
            run = Run(store, name_of(precision, workers))
            run.claim(settings)
            start = train_here if (precision, workers) == ("float64", 1) else train_with_ray
            placed = Placement(workers, "cpu", "a test's cluster")
            assert start(run, settings, placed, Stop()) == "finished"


@pytest.fixture(scope="module")
def runs(training: Training) -> Runs:
    """Twenty steps, by precision and number of workers; one of them without Ray.

    In a process of its own: Ray reads its token once, where it is first imported.
    """
    ray = {k: v for k, v in training.cluster.environment.items() if k.startswith("RAY_")}
    address = training.cluster.address
    with environment(ray):
        process = multiprocessing.get_context("spawn").Process(
            target=train_cases, args=(training.folder, address)
        )
        process.start()
    process.join()
    assert process.exitcode == 0
    return {case: training.run(name_of(*case)) for case in CASES}


def parameters(run: Run) -> torch.Tensor:
    newest = checkpoints(run)[-1]
    blobs = newest.manifest().blobs
    tensors = newest.tensors(blobs["ema"]) | newest.tensors(blobs["training"])
    names = sorted(name for name in tensors if "optimizer/" not in name)
    assert {name.partition("/")[0] for name in names} > {"generator", "discriminator"}
    return torch.cat([tensors[name].double().flatten() for name in names])


def of_kind(run: Run, kind: str) -> list[dict[str, Any]]:
    return [record for record in run.records() if record["kind"] == kind]


# The number of workers


@pytest.mark.parametrize(("precision", "workers"), [case for case in CASES if case[1] > 1])
def test_the_number_of_workers_changes_no_numbers(runs: Runs, precision: str, workers: int) -> None:
    one, many = runs[precision, 1], runs[precision, workers]
    assert [each.images for each in checkpoints(many)] == [100]
    a, b = parameters(one), parameters(many)
    assert float((a - b).norm() / a.norm()) <= TOLERANCE[precision]

    first, other = of_kind(one, "train")[0]["terms"], of_kind(many, "train")[0]["terms"]
    assert first.keys() == other.keys()
    for name in ("generator_norm", "discriminator_norm"):
        assert other[name] == pytest.approx(first[name], rel=1e-5)
    last = of_kind(many, "train")[-1]["terms"]
    assert {"offset", "discriminator_offset", "reward", "density_flatness", "response"} <= {*last}
    assert len(of_kind(many, "train")) == 20


@pytest.mark.parametrize(("precision", "workers"), [case for case in CASES if case[0] == "float64"])
def test_workers_share_the_cores(runs: Runs, precision: str, workers: int) -> None:
    (start,) = of_kind(runs[precision, workers], "start")
    assert start["workers"] == workers
    if workers > 1:  # one worker without Ray takes what torch has
        assert start["threads"] == max(1, len(os.sched_getaffinity(0)) // workers)


def test_nothing_of_ray_is_left_in_the_run(runs: Runs) -> None:
    for run in runs.values():
        assert {path.name for path in Path(run.uri).iterdir()} == {
            "run.yaml", "metrics.jsonl", "samples", "checkpoints",
        }  # fmt: skip


# Endings


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert "Traceback" not in done.stderr + done.stdout


def test_a_run_ends_with_its_report_and_what_to_type_next(
    training: Training, whole: subprocess.CompletedProcess[str]
) -> None:
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    assert "2 Ray Train workers on cpu" in whole.stdout
    assert "aalnet sample whole" in whole.stdout
    run = training.run("whole")
    assert Path(run.uri, "report.html").stat().st_size > 1000
    assert run.status() == "finished"

    records = run.records()
    started_at_s = time.monotonic()
    nowhere = ("--address", "127.0.0.1:1")  # whoever joins Ray fails
    again = aalnet(*training.words("sixteen.yaml", "whole", *nowhere), cwd=training.folder)
    assert time.monotonic() - started_at_s < 20
    assert (again.returncode, again.stderr) == (0, "")
    assert "run `whole` is finished: 64 images" in again.stdout
    assert run.records() == records


def test_a_nan_stops_the_run_and_names_the_term(training: Training) -> None:
    wild = {"optimizer.lr": 1e30, "optimizer.clip_norm": 1e30, "run.workers": 1}
    done = training.train(training.config("wild", SIXTEEN | wild), "nan")
    assert_one_line(done, 1, "not finite", " images", "Last whole checkpoint of `nan`")
    run = training.run("nan")
    assert run.status() == "failed"
    assert "not finite" in run.records()[-1]["error"]


def test_a_damaged_picture_that_only_a_worker_meets(training: Training) -> None:
    rows = noise_rows(40)
    rows[29]["target"] = b"damaged"
    write_data(training.folder / "damaged")
    write_pairs(training.folder / "damaged" / "train.parquet", rows)
    lazy = {"data.memory_budget_mib": 1, "data.size_px": 128, "run.workers": 1}
    done = training.train(training.config("lazy", SIXTEEN | lazy, data="damaged"), "damaged")
    assert_one_line(done, 2, "target of `row-29`", "damaged/train.parquet")

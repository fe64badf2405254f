"""Training on real Ray Train workers, started as people start it."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.launch.launcher import Placement, connected, train_here, train_with_ray
from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.training.stop import Stop
from tests.support.tiny_runs import (
    aalnet,
    aalnet_command,
    command_environment,
    noise_rows,
    tiny_settings,
    tiny_values,
    without_clocks,
    write_config,
    write_data,
    write_pairs,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),  # the first test waits for all that shares its cluster
    # Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

MARK = "AALNET_TEST_MARK"  # in the environment of what a test starts, and of its children
LASTING = ("train", "evaluation", "checkpoint")
TWENTY = {
    "data.batch_images": 5,  # uneven slices
    "data.noised_share": 0.3,
    "objective.K": 3,
    "run.images": 100,
    "run.checkpoint_every_images": 100,
    "run.log_every_images": 5,
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
SIXTEEN = {"run.images": 64, "run.checkpoint_every_images": 8, "run.keep_last": 2}


@dataclass
class Results:
    """What was trained on one local cluster of three CPUs."""

    folder: Path
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)  # by precision and workers
    commands: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)


def torch_cores() -> int:
    return len(os.sched_getaffinity(0))


def train_command(config: Path, run: str, folder: Path, *more: str) -> list[str]:
    return ["train", str(config), "--run", run, "--storage", str(folder / "store"), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_data(folder)
    write_config(folder / "sixteen.yaml", tiny_values(folder, SIXTEEN | {"run.workers": 2}))
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """All that shares one cluster; it is stopped again before the tests look at it."""
    found = Results(folder)
    store = FolderStore(folder / "store")
    with connected(tiny_settings(folder, {"run.workers": 3}), None) as placement:
        import ray

        assert placement == Placement(3, "cpu", "this machine")
        for precision in TOLERANCE:
            settings = tiny_settings(folder, TWENTY | {"run.precision": precision})
            for workers in (1, 2, 3):
                run = Run(store, f"{precision}-{workers}")
                run.claim(settings)
                start = train_here if (precision, workers) == ("float64", 1) else train_with_ray
                placed = Placement(workers, "cpu", "this machine")
                assert start(run, settings, placed, Stop()) == "finished"
                found.runs[precision, workers] = run

        address = ("--address", ray.get_runtime_context().gcs_address)
        config = folder / "sixteen.yaml"
        found.commands["whole"] = aalnet(
            *train_command(config, "whole", folder, *address), cwd=folder, timeout_s=200
        )
        wild = {"optimizer.lr": 1e30, "optimizer.clip_norm": 1e30, "run.workers": 2}
        write_config(folder / "wild.yaml", tiny_values(folder, SIXTEEN | wild))
        found.commands["nan"] = aalnet(
            *train_command(folder / "wild.yaml", "nan", folder, *address), cwd=folder, timeout_s=200
        )
        rows = noise_rows(40)
        rows[29]["target"] = b"damaged"
        write_data(folder / "damaged")
        write_pairs(folder / "damaged" / "train.parquet", rows)
        lazy = {"data.memory_budget_mib": 1, "data.size_px": 128, "run.workers": 2}
        write_config(folder / "damaged.yaml", tiny_values(folder / "damaged", SIXTEEN | lazy))
        found.commands["damaged"] = aalnet(
            *train_command(folder / "damaged.yaml", "damaged", folder, *address),
            cwd=folder,
            timeout_s=200,
        )
    return found


def parameters(run: Run) -> torch.Tensor:
    found = checkpoints(run)[-1]
    blobs = found.manifest().blobs
    tensors = found.tensors(blobs["ema"]) | found.tensors(blobs["training"])
    names = sorted(name for name in tensors if "optimizer/" not in name)
    assert {name.partition("/")[0] for name in names} > {"generator", "discriminator"}
    return torch.cat([tensors[name].double().flatten() for name in names])


def assert_equal_runs(run: Run, whole: Run) -> None:
    """Bit for bit: the blobs are named after what they hold."""
    ours, theirs = checkpoints(run)[-1], checkpoints(whole)[-1]
    assert ours.images == theirs.images == 64
    assert ours.manifest().blobs == theirs.manifest().blobs
    for blob in ours.manifest().blobs.values():
        assert ours.tensors(blob)
    kinds = ("train", "evaluation")
    assert without_clocks(run.records(), kinds) == without_clocks(whole.records(), kinds)


def of_kind(run: Run, kind: str) -> list[dict[str, Any]]:
    return [record for record in run.records() if record["kind"] == kind]


# The number of workers


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_number_of_workers_changes_no_numbers(
    results: Results, precision: str, workers: int
) -> None:
    one, many = results.runs[precision, 1], results.runs[precision, workers]
    assert [found.images for found in checkpoints(many)] == [100]
    a, b = parameters(one), parameters(many)
    assert float((a - b).norm() / a.norm()) <= TOLERANCE[precision]

    first, other = of_kind(one, "train")[0]["terms"], of_kind(many, "train")[0]["terms"]
    assert first.keys() == other.keys()
    for name in ("generator_norm", "discriminator_norm"):
        assert other[name] == pytest.approx(first[name], rel=1e-5)
    last = of_kind(many, "train")[-1]["terms"]
    assert {"offset", "discriminator_offset", "reward", "density_flatness", "response"} <= {*last}
    assert len(of_kind(many, "train")) == 20


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_cores(results: Results, workers: int) -> None:
    (start,) = of_kind(results.runs["float32", workers], "start")
    assert start["workers"] == workers
    assert start["threads"] == max(1, torch_cores() // workers)


def test_nothing_of_ray_is_left_in_the_run(results: Results) -> None:
    for run in results.runs.values():
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


def test_a_run_ends_with_its_report_and_what_to_type_next(results: Results) -> None:
    done = results.commands["whole"]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "2 Ray Train workers on cpu" in done.stdout
    assert "aalnet sample whole" in done.stdout
    run = Run(FolderStore(results.folder / "store"), "whole")
    assert Path(run.uri, "report.html").stat().st_size > 1000
    assert run.status() == "finished"


def test_a_finished_run_says_so_without_ray(results: Results) -> None:
    run = Run(FolderStore(results.folder / "store"), "whole")
    records = run.records()
    started_at_s = time.monotonic()
    nowhere = ("--address", "127.0.0.1:1")  # whoever starts Ray fails
    done = aalnet(
        *train_command(results.folder / "sixteen.yaml", "whole", results.folder, *nowhere),
        cwd=results.folder,
    )
    assert time.monotonic() - started_at_s < 20
    assert (done.returncode, done.stderr) == (0, "")
    assert "run `whole` is finished: 64 images" in done.stdout
    assert run.records() == records


def test_a_nan_stops_the_run_and_names_the_term(results: Results) -> None:
    assert_one_line(
        results.commands["nan"], 1, "not finite", " images", "Last whole checkpoint of `nan`"
    )
    run = Run(FolderStore(results.folder / "store"), "nan")
    assert run.status() == "failed"
    assert "not finite" in run.records()[-1]["error"]


def test_a_damaged_picture_that_only_a_worker_meets(results: Results) -> None:
    assert_one_line(results.commands["damaged"], 2, "target of `row-29`", "damaged/train.parquet")


# Killed and stopped


@dataclass
class Started:
    """A command in a session of its own, whose processes can all be found."""

    process: subprocess.Popen[str]
    mark: str

    def pids(self, *words: str) -> list[int]:
        """Living processes that were started by it, wherever they belong by now.

        With words, only those whose command line has them all.
        """
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                alive = b") Z " not in (folder / "stat").read_bytes()
                ours = wanted in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
                if alive and ours and all(word.encode() in command for word in words):
                    found.append(int(folder.name))
            except OSError:
                continue
        return sorted(found)

    def kill_all(self) -> None:
        for _ in range(50):
            if not (pids := self.pids()):
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)


@pytest.fixture
def start(folder: Path) -> Iterator[Any]:
    """Start `aalnet ...`; whatever is left of it is killed at the end."""
    begun: list[Started] = []

    def started(*arguments: str) -> Started:
        mark = uuid.uuid4().hex
        with (folder / f"{mark}.txt").open("w") as out:
            process = subprocess.Popen(
                aalnet_command(*arguments), cwd=folder, env=command_environment() | {MARK: mark},
                stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        begun.append(Started(process, mark))
        return begun[-1]

    yield started
    for one in begun:
        one.kill_all()
        one.process.wait(20)


def wait_for_checkpoint(run: Run, started: Started, timeout_s: float = 150) -> Checkpoint:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := checkpoints(run):
            return found[-1]
        assert started.process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    raise AssertionError("no checkpoint in time")


def test_a_run_killed_and_started_again_is_the_uninterrupted_one(
    results: Results, start: Any
) -> None:
    folder = results.folder
    store = FolderStore(folder / "store")
    whole, run = Run(store, "whole"), Run(store, "killed")
    command = train_command(folder / "sixteen.yaml", "killed", folder)

    first = start(*command)
    wait_for_checkpoint(run, first)
    first.process.kill()
    first.kill_all()
    assert first.process.wait(20) == -signal.SIGKILL
    assert checkpoints(run)[-1].images < 64
    assert run.status() == "running"

    again = aalnet(*command, cwd=folder, timeout_s=200)

    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
    starts = of_kind(run, "start")
    assert len(starts) == 2
    assert starts[1]["images"] > 0
    assert_equal_runs(run, whole)


@pytest.mark.parametrize(("victim", "count"), [("RayTrainWorker", 2), ("TrainController", 1)])
def test_a_killed_process_and_the_run_goes_on_by_itself(
    results: Results, start: Any, victim: str, count: int
) -> None:
    folder = results.folder
    store = FolderStore(folder / "store")
    name = f"killed-{victim.lower()}"
    whole, run = Run(store, "whole"), Run(store, name)

    first = start(*train_command(folder / "sixteen.yaml", name, folder))
    wait_for_checkpoint(run, first)
    victims = first.pids(victim, "ray::")
    assert len(victims) == count, "the marks of Ray Train's processes have changed"
    if victim == "RayTrainWorker":  # word of the failure arrives by a mailbox that starts again
        (mailbox,) = first.pids("MailboxServer", "ray::")
        os.kill(mailbox, signal.SIGKILL)
    os.kill(victims[-1], signal.SIGKILL)

    told = folder / f"{first.mark}.txt"
    assert first.process.wait(200) == 0, told.read_text()
    assert "Traceback" not in told.read_text()
    before, again = of_kind(run, "start")
    assert (before["images"], again["images"] > 0) == (0, True)
    assert again["cause"] == "crash"
    assert again["error"]
    assert 0 < again["recovery_s"] < 60
    assert again["lost_images"] <= 8 + 5, "no more than an interval, and what was not logged"
    assert run.status() == "finished"
    assert_equal_runs(run, whole)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "Ctrl-C: stopping after a checkpoint"),
     (signal.SIGTERM, 143, "SIGTERM: stopping after a checkpoint")],
)  # fmt: skip
def test_a_signal_saves_and_stops_everything_and_the_same_command_goes_on(
    folder: Path, start: Any, number: signal.Signals, code: int, words: str
) -> None:
    long = {"run.images": 1200, "run.checkpoint_every_images": 120, "run.workers": 2}
    name = f"stopped-{code}"
    config = write_config(folder / f"{name}.yaml", tiny_values(folder, long))
    command = train_command(config, name, folder)
    run = Run(FolderStore(folder / "store"), name)

    first = start(*command)
    wait_for_checkpoint(run, first)
    if number == signal.SIGINT:
        os.killpg(first.process.pid, number)  # as a terminal does
    else:
        os.kill(first.process.pid, number)  # as Kubernetes and Slurm do
    stopped_at_s = time.monotonic()
    ended = first.process.wait(60)
    seconds = time.monotonic() - stopped_at_s
    while first.pids() and time.monotonic() - stopped_at_s < 30:
        time.sleep(0.2)

    told = (folder / f"{first.mark}.txt").read_text()
    assert ended == code, told
    assert seconds < 25
    assert first.pids() == []
    assert words in told
    assert "Traceback" not in told
    done_before = checkpoints(run)[-1].images
    assert 120 <= done_before < 1200
    assert f"run `{name}` is stopped at {done_before:,} images; the same command goes on" in told
    end, trained = run.records()[-1], of_kind(run, "train")[-1]
    assert (end["status"], run.status()) == ("stopped", "stopped")
    assert done_before == end["images"] == trained["images"], "no step is lost"

    again = aalnet(*command, cwd=folder, timeout_s=300)
    assert again.returncode == 0, again.stderr
    assert f"going on from {done_before:,}" in again.stdout
    assert run.status() == "finished"
    assert json.loads(json.dumps(of_kind(run, "start")))[-1]["images"] == done_before

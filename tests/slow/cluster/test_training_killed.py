"""Training on real Ray Train workers, killed and stopped: it goes on, and ends on the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from tests.slow.cluster.conftest import Training
from tests.support.processes import MARK, TRAIN_WORKER, kill_marked, marked, title
from tests.support.tiny_runs import aalnet_command, command_environment, without_clocks

pytestmark = pytest.mark.timeout(400)
CONTROLLER = "ray::TrainController"
Whole = subprocess.CompletedProcess[str]


@dataclass
class Started:
    """A command under way, in a session of its own, whose processes can all be found."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path


@pytest.fixture
def start(training: Training) -> Iterator[Callable[..., Started]]:
    """Start `aalnet ...` with a Ray of its own, or on the cluster; it is killed at the end."""
    begun: list[Started] = []

    def started(*words: str, joins: bool = False) -> Started:
        mark = uuid.uuid4().hex
        environment = training.cluster.environment if joins else command_environment()
        log = training.folder / f"{mark}.txt"
        with log.open("wb") as out:
            process = subprocess.Popen(
                aalnet_command(*words), cwd=training.folder, env=environment | {MARK: mark},
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        begun.append(Started(process, mark, log))
        return begun[-1]

    yield started
    for one in begun:
        kill_marked(one.mark)
        one.process.wait(20)


def remains(started: Started, training: Training) -> list[str]:
    """What is left of a run: processes of its own, and workers on the cluster."""
    on_cluster = [name for pid in training.cluster.pids() if TRAIN_WORKER in (name := title(pid))]
    return [*map(title, marked(started.mark)), *on_cluster]


def wait_for_checkpoint(run: Run, started: Started, timeout_s: float = 150) -> Checkpoint:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if whole_ones := checkpoints(run):
            return whole_ones[-1]
        assert started.process.poll() is None, started.log.read_text()
        time.sleep(0.01)
    raise AssertionError("no checkpoint in time")


def of_kind(run: Run, kind: str) -> list[dict[str, Any]]:
    return [record for record in run.records() if record["kind"] == kind]


def assert_equal_runs(run: Run, whole: Run) -> None:
    """Bit for bit: the blobs are named after what they hold."""
    ours, theirs = checkpoints(run)[-1], checkpoints(whole)[-1]
    assert ours.images == theirs.images == 64
    assert ours.manifest().blobs == theirs.manifest().blobs
    for blob in ours.manifest().blobs.values():
        assert ours.tensors(blob)
    kinds = ("train", "evaluation")
    assert without_clocks(run.records(), kinds) == without_clocks(whole.records(), kinds)


def test_a_run_killed_with_its_ray_and_started_again_is_the_uninterrupted_one(
    training: Training, whole: Whole, start: Callable[..., Started]
) -> None:
    run = training.run("killed")
    first = start(*training.words("sixteen.yaml", "killed"))
    wait_for_checkpoint(run, first)
    first.process.kill()
    kill_marked(first.mark)
    assert first.process.wait(20) == -signal.SIGKILL
    assert checkpoints(run)[-1].images < 64
    assert run.status() == "running"

    again = training.train("sixteen.yaml", "killed")

    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
    starts = of_kind(run, "start")
    assert len(starts) == 2
    assert starts[1]["images"] > 0
    assert_equal_runs(run, training.run("whole"))


@pytest.mark.parametrize(("victim", "count"), [(TRAIN_WORKER, 2), (CONTROLLER, 1)])
def test_a_killed_process_and_the_run_goes_on_by_itself(
    training: Training, whole: Whole, start: Callable[..., Started], victim: str, count: int
) -> None:
    run = training.run(f"killed-{count}")
    address = ("--address", training.cluster.address)
    began_s = time.monotonic()
    first = start(*training.words("sixteen.yaml", run.name, *address), joins=True)
    wait_for_checkpoint(run, first)
    victims = [pid for pid in training.cluster.pids() if title(pid).startswith(victim)]
    assert len(victims) == count, "the marks of Ray Train's processes have changed"
    if victim == TRAIN_WORKER:  # word of the failure arrives by a mailbox that starts again
        (mailbox,) = [pid for pid in training.cluster.pids() if "MailboxServer" in title(pid)]
        os.kill(mailbox, signal.SIGKILL)
    os.kill(victims[-1], signal.SIGKILL)

    assert first.process.wait(200) == 0, first.log.read_text()
    assert "Traceback" not in first.log.read_text()
    before, again = of_kind(run, "start")
    assert (before["images"], again["images"] > 0) == (0, True)
    assert again["cause"] == "crash"
    assert again["error"]
    assert 0 < again["recovery_s"] < time.monotonic() - began_s
    assert again["lost_images"] <= 8 + 5, "no more than an interval, and what was not logged"
    assert run.status() == "finished"
    assert_equal_runs(run, training.run("whole"))


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "Ctrl-C: stopping after a checkpoint"),
     (signal.SIGTERM, 143, "SIGTERM: stopping after a checkpoint")],
    ids=["SIGINT", "SIGTERM"],
)  # fmt: skip
def test_a_signal_saves_and_stops_everything_and_the_same_command_goes_on(
    training: Training, start: Callable[..., Started], number: signal.Signals, code: int, words: str
) -> None:
    """Ctrl-C with a Ray of the run's own; SIGTERM on a cluster that stays."""
    joins, name = number == signal.SIGTERM, f"stopped-{code}"
    long = {"run.images": 400, "run.checkpoint_every_images": 80, "run.workers": 2}
    config, run = training.config(name, long), training.run(name)
    address = ("--address", training.cluster.address) if joins else ()
    first = start(*training.words(config, name, *address), joins=joins)
    wait_for_checkpoint(run, first)
    if number == signal.SIGINT:
        os.killpg(first.process.pid, number)  # as a terminal does
    else:
        os.kill(first.process.pid, number)  # as Kubernetes and Slurm do
    stopped_at_s = time.monotonic()
    ended = first.process.wait(60)
    seconds = time.monotonic() - stopped_at_s
    while (left := remains(first, training)) and time.monotonic() - stopped_at_s < 30:
        time.sleep(0.2)

    told = first.log.read_text()
    assert ended == code, told
    assert seconds < 25
    assert left == []
    assert words in told
    assert "Traceback" not in told
    saved = checkpoints(run)[-1].images
    assert 80 <= saved < 400
    assert f"run `{name}` is stopped at {saved:,} images; the same command goes on" in told
    end, trained = run.records()[-1], of_kind(run, "train")[-1]
    assert (end["status"], run.status()) == ("stopped", "stopped")
    assert saved == end["images"] == trained["images"], "no step is lost"

    if not joins:
        again = training.train(config, name)
        assert again.returncode == 0, again.stderr
        assert f"going on from {saved:,}" in again.stdout
        assert run.status() == "finished"
        assert of_kind(run, "start")[-1]["images"] == saved

"""Part of `chaos`: Ray Train workers that are killed, and what of the time is left for steps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import StoreError
from tests.proof.lane import BATCH, LONGEST_S, SETTINGS, blobs_of
from tests.proof.victim import ROOT
from tests.support.processes import descendants, kill, workers_of
from tests.support.s3_server import S3Server
from tests.support.tiny_runs import tiny_values, without_clocks, write_config

WORKERS = 2
STEP_EACH = {**SETTINGS, "run.log_every_images": BATCH, "run.workers": WORKERS}
# On a machine that others use too, Ray's niceness of 15 would leave its workers next to nothing.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
UP_S = 180.0  # until the first step
BETWEEN_S = (3.0, 9.0)  # from a first step to the next kill
POLL_S = 0.3


@dataclass
class RayKills:
    """What came of killing workers one after the other in one run."""

    to_start_s: list[float] = field(default_factory=list)
    to_step_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def worker_kills(server: S3Server, folder: Path, count: int, seed: int) -> RayKills:
    """Kill one of two workers `count` times at random moments; compare with a run left alone."""
    chance = random.Random(f"{seed}/ray")
    found = RayKills()
    images = BATCH * 4_000  # stopped by a signal before
    values = {**STEP_EACH, "run.images": images, "run.checkpoint_every_images": 24 * BATCH,
              "run.keep_last": 1000}  # fmt: skip
    config = write_config(folder / "ray.yaml", tiny_values(folder, values))
    run = Run(open_store(f"s3://{server.bucket}/chaos"), "workers")
    with driver(config, run, folder / "workers.out") as process:
        await_step(run, process, after_s=0.0)
        for _ in range(count):
            time.sleep(chance.uniform(*BETWEEN_S))
            pids = workers_of(process.pid)
            killed_s = time.time()
            os.kill(chance.choice(pids), signal.SIGKILL)
            start, step = await_step(run, process, after_s=killed_s)
            found.to_start_s.append(start["time_s"] - killed_s)
            found.to_step_s.append(step["time_s"] - killed_s)
        process.send_signal(signal.SIGTERM)
        code = process.wait(LONGEST_S)
    if code != 128 + signal.SIGTERM:
        found.wrong.append(f"the driver ended with {code}")
    _compare(run, folder, found)
    return found


def _compare(run: Run, folder: Path, found: RayKills) -> None:
    """Train as far again, undisturbed, and compare every checkpoint and every logged number."""
    left = checkpoints(run)
    last = left[-1].images
    values = {**STEP_EACH, "run.images": BATCH * 4_000, "run.keep_last": 1000,
              "run.checkpoint_every_images": 24 * BATCH}  # fmt: skip
    config = write_config(folder / "alone.yaml", tiny_values(folder, values))
    alone = Run(FolderStore(folder / "alone"), "alone")
    with driver(config, alone, folder / "alone.out") as process:
        end_s = time.monotonic() + 20 * LONGEST_S
        while (records := alone.records()) is None or not records or (
            records[-1]["images"] <= last
        ):  # fmt: skip
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError((folder / "alone.out").read_text()[-2000:])
            time.sleep(POLL_S)
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_S)
    theirs = {one.images: blobs_of(one) for one in checkpoints(alone)}
    compared = 0
    for one in left:
        if one.images in theirs:
            compared += 1
            if blobs_of(one) != theirs[one.images]:
                found.wrong.append(f"the checkpoint at {one.images} has other numbers")
    if compared < len(left) - 1:  # the one of SIGTERM stands at a step of its own
        found.wrong.append(f"{compared} of {len(left)} checkpoints could be compared")
    ours = without_clocks(run.records(), ["train"])
    upto = [r for r in without_clocks(alone.records(), ["train"]) if r["images"] <= last]
    if ours != upto:
        found.wrong.append("the log has other numbers")


@contextlib.contextmanager
def driver(config: Path, run: Run, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`aalnet train` on Ray; whatever is left of it at the end is killed, by process id."""
    words = ["train", str(config), "--run", run.name, "--storage", run.store.uri]
    with program([sys.executable, "-m", "aalnet", *words, "--workers", str(WORKERS)], out) as one:
        yield one


@contextlib.contextmanager
def program(command: list[str], out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver of Ray, in a session of its own."""
    with out.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
    try:
        yield process
    finally:
        left = descendants(process.pid)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        kill([process.pid, *left] if process.poll() is None else left)
        process.wait()


def await_step(run: Run, process: subprocess.Popen[bytes], after_s: float) -> tuple[Record, Record]:
    """The start record after a moment, and the first step's record after it."""
    end_s = time.monotonic() + UP_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise RuntimeError(f"the driver ended with {process.returncode}")
        with contextlib.suppress(StoreError):
            records = [r for r in run.records() if r["time_s"] > after_s]
            starts = [i for i, record in enumerate(records) if record["kind"] == "start"]
            if starts:
                steps = [r for r in records[starts[0] :] if r["kind"] == "train"]
                if steps:
                    return records[starts[0]], steps[0]
        time.sleep(POLL_S)
    raise RuntimeError(f"no step within {UP_S:.0f} s")


@dataclass(frozen=True)
class Share:
    """What came of some minutes in which a worker was killed now and then."""

    name: str
    seconds: float
    kills: int
    images: int
    step_s: float  # median

    @property
    def goodput(self) -> float:
        """The share of the time that went into steps which are still there at the end."""
        return self.images / BATCH * self.step_s / self.seconds


def goodput(
    server: S3Server, folder: Path, seconds: float, every_s: float, seed: int
) -> list[Share]:
    """Ours, then plain Ray Train, for the same time with the same kills."""
    every_images = 100 * BATCH
    values = {**STEP_EACH, "run.images": BATCH * 100_000,
              "run.checkpoint_every_images": every_images,
              "run.evaluate_every_images": BATCH * 100_000}  # fmt: skip  # plain Ray does none
    config = write_config(folder / "goodput.yaml", tiny_values(folder, values))
    return [
        _ours(server, folder, config, seconds, every_s, seed),
        _plain(server, folder, config, every_images, seconds, every_s, seed),
    ]


def _ours(server: S3Server, folder: Path, config: Path, seconds: float, every_s: float,
          seed: int) -> Share:  # fmt: skip
    run = Run(open_store(f"s3://{server.bucket}/chaos"), "goodput")
    with driver(config, run, folder / "goodput.out") as process:
        _, first = await_step(run, process, after_s=0.0)
        began_s = first["time_s"]
        count = _kill_now_and_then(process.pid, began_s, seconds, every_s, seed)
        end_s = began_s + seconds
        time.sleep(max(end_s - time.time(), 0))
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_S)
    steps = [r for r in run.records() if r["kind"] == "train" and r["time_s"] <= end_s]
    step_s = statistics.median(r["step_s"] for r in steps)
    return Share("aalnet", seconds, count, steps[-1]["images"], step_s)


def _plain(server: S3Server, folder: Path, config: Path, every_images: int, seconds: float,
           every_s: float, seed: int) -> Share:  # fmt: skip
    progress = folder / "plain.progress"
    progress.touch()
    words: list[Any] = [config, f"s3://{server.bucket}/plain", "plain", progress, every_images]
    command = [sys.executable, "-m", "tests.proof.plain_ray", *map(str, words)]
    with program(command, folder / "plain.out") as process:
        limit_s = time.monotonic() + UP_S
        while not progress.read_text():
            if process.poll() is not None or time.monotonic() > limit_s:
                raise RuntimeError((folder / "plain.out").read_text()[-3000:])
            time.sleep(POLL_S)
        began_s = float(progress.read_text().split()[1])
        count = _kill_now_and_then(process.pid, began_s, seconds, every_s, seed)
        end_s = began_s + seconds
        time.sleep(max(end_s - time.time(), 0))
    lines = [line.split() for line in progress.read_text().splitlines()]
    steps = [(int(i), float(s)) for i, at, s in lines if float(at) <= end_s]
    step_s = statistics.median(s for _, s in steps)
    return Share("plain Ray Train", seconds, count, steps[-1][0], step_s)


def _kill_now_and_then(pid: int, began_s: float, seconds: float, every_s: float, seed: int) -> int:
    """Kill one worker at a random moment of every `every_s`; how many were killed."""
    chance = random.Random(f"{seed}/goodput")
    count = 0
    for number in range(int(seconds / every_s)):
        at_s = began_s + (number + chance.uniform(0.3, 0.7)) * every_s
        pick = chance.random()
        time.sleep(max(at_s - time.time(), 0))
        if pids := workers_of(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[int(pick * len(pids))], signal.SIGKILL)
                count += 1
    return count

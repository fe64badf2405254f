"""`aalnet`, as its users run it, with a trace of its steps: what the chaos benchmark kills.

Started as a program of its own, or forked from a process that has imported everything: then a
random moment falls into training and uploads, and seldom into Python's imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster.commands.train  # a fork then has it
import cluster.runs.checkpoint
import cluster.runs.saver
import cluster.storage.s3
import cluster.training.loop
from aalnet.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
STEP, BEGIN, DONE = "step", "begin", "done"  # a step was made, a state was handed over, is whole


@dataclass(frozen=True)
class Event:
    """One line of a trace."""

    kind: str
    images: int
    time_s: float  # of the monotonic clock, which all processes of a machine share


def read_trace(path: Path) -> list[Event]:
    """The events of a process so far; it may be dead."""
    lines = path.read_text().splitlines() if path.exists() else []
    fields = [line.split() for line in lines]
    return [Event(kind, int(images), float(at)) for kind, images, at in fields]


class Victim:
    """A running `aalnet`. `forked`: without the seconds of imports."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        trace: Path,
        *,
        forked: bool = True,
    ) -> None:
        self.trace = trace
        self._words = [str(argument) for argument in arguments]
        self.started_s = time.monotonic()
        self._fork: Any = None
        self._program: subprocess.Popen[bytes] | None = None
        if forked:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["tests.proof.victim"])
            self._fork = context.Process(target=_run, args=(self._words, dict(environment), trace))
            self._fork.start()
            self.pid = int(self._fork.pid)
        else:
            with trace.with_suffix(".out").open("ab") as out:
                self._program = subprocess.Popen(
                    [sys.executable, "-m", "tests.proof.victim", str(trace), *self._words],
                    cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=out,
                )  # fmt: skip
            self.pid = self._program.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._program is not None:
            try:
                return self._program.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return None
        self._fork.join(timeout_s)
        code: int | None = self._fork.exitcode
        return code

    def events(self) -> list[Event]:
        return read_trace(self.trace)

    def output(self) -> str:
        """What it printed."""
        path = self.trace.with_suffix(".out")
        return path.read_text(errors="replace") if path.exists() else ""


def _run(words: list[str], environment: dict[str, str], trace: Path) -> None:
    """In a fork: become `aalnet` with these words."""
    os.environ.update(environment)
    out = os.open(trace.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["aalnet", *words]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    cluster.runs.checkpoint.WRITER = uuid.uuid4().hex
    cluster.launch.launcher.LAUNCHED_AT_S = time.time()
    put_trace(trace)
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def put_trace(path: Path) -> None:
    """Have this process write down its steps and checkpoints, in single atomic writes."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(kind: str, images: int) -> None:
        os.write(file, f"{kind} {images} {time.monotonic():.6f}\n".encode())

    step = cluster.training.loop.train_step
    save, write = cluster.runs.saver.Saver.save, cluster.runs.checkpoint.write

    def traced_step(state: Any, *rest: Any) -> Any:
        terms = step(state, *rest)
        note(STEP, state.images_seen)
        return terms

    def traced_save(saver: Any, state: Any, figures: Any) -> None:
        note(BEGIN, state.images_seen)
        save(saver, state, figures)

    def traced_write(run: Any, taken: Any) -> Any:
        manifest = write(run, taken)
        note(DONE, taken.images_seen)
        return manifest

    cluster.training.loop.train_step = traced_step
    cluster.runs.saver.Saver.save = traced_save  # type: ignore[method-assign]
    cluster.runs.checkpoint.write = traced_write


if __name__ == "__main__":
    put_trace(Path(sys.argv[1]))
    sys.argv = ["aalnet", *sys.argv[2:]]
    main()

"""Part of `chaos`: one training process that is killed, or asked to stop, at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.proof.lane import (
    BATCH,
    IMAGES,
    LONGEST_S,
    NETWORKS,
    SETTINGS,
    Case,
    Lane,
    Moment,
    Range,
    blobs_of,
)
from tests.proof.victim import ROOT, STEP, Victim
from tests.support.fault_proxy import Rule, fault_proxy
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_runs import tiny_values, without_clocks, write_config, write_data

AT_ONCE = 2
PROGRAM_EVERY = 10  # every so many-th victim is a program of its own, imports and all
# A moment is drawn by where the run is, since a busy machine stretches a run's life: before the
# first step, so long after one of the steps (checkpoints are written between them), or at the end.
PHASES, PHASE_SHARES = ("start", "steps", "end"), (15, 70, 15)
NETWORK_SHARES = (4, 4, 2)  # how often each of NETWORKS comes


@contextlib.contextmanager
def shooting_range(folder: Path) -> Iterator[Range]:
    """Everything that cases need; the reference run is made here."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    config = write_config(folder / "chaos.yaml", tiny_values(write_data(folder), SETTINGS))
    with s3_server(folder / "s3") as server, environment({**server.environment, **variables}):
        every = write_config(
            folder / "reference.yaml",
            tiny_values(folder, {**SETTINGS, "run.checkpoint_every_images": BATCH,
                                 "run.keep_last": 10**6}),
        )  # fmt: skip
        stored = folder / "reference"
        done = Victim(
            ["train", every, "--run", "reference", "--storage", stored, "--workers", 0],
            {}, folder / "reference.trace",
        )  # fmt: skip
        if done.wait(LONGEST_S) != 0:
            raise RuntimeError(f"the reference run failed: {done.output()}")
        run = Run(FolderStore(stored), "reference")
        reference = {found.images: blobs_of(found) for found in checkpoints(run)}
        assert len(reference) == IMAGES // BATCH, "the reference run left checkpoints out"
        made = Range(server, folder, config, reference, without_clocks(run.records(), ["train"]))
        yield made


def measure_phases(made: Range, lane: Lane, network: str, *, forked: bool) -> None:
    """How long an undisturbed run takes to its first step, from there to the last, and to end."""
    name = f"life-{network.replace(' ', '-')}-{forked}"
    lane.proxy.rule = Rule(**NETWORKS[network], seed=1)
    target = lane.victim(name, forked=forked)
    code = target.wait(LONGEST_S)
    ended_s = time.monotonic()
    if code != 0:
        raise RuntimeError(f"an undisturbed run ended with {code}: {target.output()}")
    at_s = [event.time_s for event in target.events() if event.kind == STEP]
    made.phases_s[network, forked] = (
        at_s[0] - target.started_s, at_s[-1] - at_s[0], ended_s - at_s[-1]
    )  # fmt: skip
    lane.forget(name)


def kills(made: Range, count: int, seed: int, number: signal.Signals) -> list[Case]:
    """`count` cases of one signal, AT_ONCE at a time; the same moments for the same seed."""
    with contextlib.ExitStack() as stack:
        lanes = [
            Lane(made, stack.enter_context(fault_proxy(made.server.endpoint)))
            for _ in range(AT_ONCE)
        ]
        free = list(lanes)
        cases = [_drawn(case_number, seed, number) for case_number in range(count)]
        for network, forked in {(case.network, case.forked) for case, _ in cases}:
            if (network, forked) not in made.phases_s:
                measure_phases(made, lanes[0], network, forked=forked)

        def one(drawn: tuple[Case, random.Random]) -> Case:
            lane = free.pop()
            try:
                return _case(lane, *drawn, number)
            finally:
                free.append(lane)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, cases))


def _drawn(case_number: int, seed: int, number: signal.Signals) -> tuple[Case, random.Random]:
    """A case with its first moment, and the generator that draws the next ones."""
    chance = random.Random(f"{seed}/{number}/{case_number}")
    network = chance.choices(list(NETWORKS), NETWORK_SHARES)[0]
    forked = (case_number + 1) % PROGRAM_EVERY != 0
    return Case(case_number, network if forked else "plain", forked, _moment(chance)), chance


def _moment(chance: random.Random) -> Moment:
    phase = chance.choices(PHASES, PHASE_SHARES)[0]
    return Moment(phase, chance.randint(1, IMAGES // BATCH), chance.random())


def _case(lane: Lane, case: Case, chance: random.Random, number: signal.Signals) -> Case:
    """Shoot, again where the run ended first, and see a killed run to its end."""
    for again in range(20):
        name = f"{number.name.lower()}-{case.number}-{again}"
        if again:
            case = Case(case.number, case.network, case.forked, _moment(chance))
        lane.shoot(case, number, name)
        ended = case.code == 0  # on its own, before the signal
        if not ended and number == signal.SIGKILL:
            lane.finish(case, name)
        elif not ended:
            _check_stopped(case)
        if not case.wrong:
            lane.forget(name)
        if not ended:
            break
    return case


def _check_stopped(case: Case) -> None:
    """A run that was asked to stop: nothing is lost, and the code says why it ended."""
    unmade = case.code == -signal.SIGTERM and not case.images  # Python itself was still starting
    if case.code != 128 + signal.SIGTERM and not unmade:
        case.wrong.append(f"exit code {case.code}")
    if case.lost_images:
        case.wrong.append(f"lost {case.lost_images} images")


def tally(cases: list[Case], of: Callable[[Case], str]) -> str:
    """`an upload 31, a step 52`"""
    counts = Counter(of(case) for case in cases)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a server and its runs."""
    return tempfile.TemporaryDirectory(prefix="aalnet-chaos-", ignore_cleanup_errors=True)


def single_threaded() -> None:
    """Before anything is forked: children take one core each."""
    os.environ["OMP_NUM_THREADS"] = "1"

"""Training steps of several settings side by side: penalties, samples, precision, methods."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from aalnet.networks import DataSpec, Discriminator, Generator, Proposal
from aalnet.settings import Settings
from benchmarks.speed.training import CYCLE, QUICK, Trainer, demo, gloo_workers
from benchmarks.speed.turns import Times, in_turns
from benchmarks.table import Result, Row
from cluster.training.world import current_world

WITHOUT_PENALTIES = ("objective.gamma=0", "objective.flatness=0")
Overrides = Sequence[str]  # `key=value`


def step_times(cases: Mapping[str, Overrides], numbers: Sequence[int], quick: bool) -> Times:
    """Seconds of the steps `numbers` of the demo with each case's overrides."""
    trainers = {name: Trainer(demo(*changes, quick=quick)) for name, changes in cases.items()}
    steps = {name: trainer.step for name, trainer in trainers.items()}
    return in_turns(steps, 1 if quick else 5, numbers)


def _cycles(a: str, b: str, cases: Mapping[str, Overrides], quick: bool) -> tuple[float, list[str]]:
    """The ratio of two cases over whole cycles, and the words behind it."""
    times = step_times(cases, range(CYCLE), quick)
    raw = [
        *times.medians("step", CYCLE),
        times.single_rounds(a, b),
        f"{a} / {b} in CPU seconds: {times.cpu_ratio(a, b):.3f}",
    ]
    return times.ratio(a, b), raw


def penalties(quick: bool) -> Result:
    """Demo settings, one process, one thread, real batches held in memory. Two train states step in
    turns, one as configured (finite differences, interval 16), one with `gamma = flatness = 0`. A
    round is a whole cycle of 16 steps of a run's last phase, so it holds one step with both
    penalties of G and that of D; the figure is the ratio of the medians over rounds. All-reduces
    are counted by `ProcessWorld` in two gloo processes, for a step without and one with penalties.
    """
    cases = {"with": (), "without": WITHOUT_PENALTIES}
    ratio, raw = _cycles("with", "without", cases, quick)
    plain, due = map(int, gloo_workers(_count_all_reduces, 2)[0].split())
    rows = [
        Row("step with both penalties / without", ratio, bar=1.25),
        Row("all-reduces, a step without penalties", plain),
        Row("all-reduces, a step with both penalties", due),
    ]
    return Result(rows, raw)


def _count_all_reduces(rank: int, answers: Path) -> None:
    world = current_world()
    trainer = Trainer(demo(*QUICK), rank, world.size)
    counts = []
    for number in (0, CYCLE - 1):
        before = world.all_reduces
        trainer.step(number, world)
        counts.append(world.all_reduces - before)
    (answers / str(rank)).write_text(" ".join(map(str, counts)))


def samples(quick: bool) -> Result:
    """Demo settings, one process, one thread. A train state with `K = 4` and one with `K = 1` step
    in turns on the same real images; a round is a whole cycle of 16 steps with all penalties. The
    figure is the ratio of the medians over rounds.
    """
    cases = {f"K = {k}": (f"objective.K={k}",) for k in (4, 1)}
    ratio, raw = _cycles("K = 4", "K = 1", cases, quick)
    return Result([Row("whole step, K = 4 / K = 1", ratio, bar=2.7)], raw)


PLAIN = "float32"
FAMILIES = {family: (f"network.blocks={family}",) for family in ("densenet", "inception")}
PRECISIONS: dict[str, Overrides] = {
    PLAIN: (),
    "float32, channels last": ("run.channels_last=true",),
    "bfloat16": ("run.precision=bfloat16",),
    "bfloat16, channels last": ("run.precision=bfloat16", "run.channels_last=true"),
    **FAMILIES,
}


def precision(quick: bool) -> Result:
    """One process, one thread, demo settings otherwise. Train states of every number format, memory
    layout and block family step in turns; a round is four steps of a run's last phase, none with a
    penalty. Figures are ratios of medians over rounds to float32, contiguous, resnet.
    For information: there is no bar. Parameters are counted, those of G, of D and of q.
    """
    times = step_times(PRECISIONS, range(4), quick)
    rows = [Row(f"step, {name} / {PLAIN}", times.ratio(name, PLAIN)) for name in [*PRECISIONS][1:]]
    sizes: dict[str, Overrides] = {p: (f"network.preset={p}",) for p in ("tiny", "base", "large")}
    sizes |= {f"tiny, {name}": changes for name, changes in FAMILIES.items()}
    rows += [
        Row(f"parameters of G, D and q, {name}", parameters(demo(*changes)), "M")
        for name, changes in sizes.items()
    ]
    return Result(rows, times.medians("step", 4))


def parameters(settings: Settings) -> str:
    """Millions in the generator, in the discriminator and in the proposal."""
    spec = DataSpec(("one",), 1, 3)
    counts = [
        sum(parameter.numel() for parameter in network.parameters())
        for network in (kind(settings, spec) for kind in (Generator, Discriminator, Proposal))
    ]
    return " + ".join(f"{count / 1e6:.2f}" for count in counts)


METHODS: dict[str, Overrides] = {
    "exact": ("objective.penalty_method=exact",),
    "finite_difference": ("objective.penalty_method=finite_difference",),
    "no penalty of G": WITHOUT_PENALTIES,
}


def methods(quick: bool) -> Result:
    """One process, one thread, demo settings. Steps on which both penalties of G and that of D are
    due, by finite differences and by double backward, step in turns with one without the penalties
    of G; the ratio is that of the medians. Memory is what the peak resident size of a fresh process
    grows by in two such steps, over its size with data, networks and optimizers in place. For
    information: there is no bar.
    """
    times = step_times(METHODS, [CYCLE - 1], quick)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        memory = dict(zip(METHODS, pool.map(grown_mib, METHODS, [quick] * 3), strict=True))
    exact, finite, none = METHODS
    rows = [
        Row("penalty step, exact / finite_difference", times.ratio(exact, finite)),
        Row("penalty step, finite_difference / none", times.ratio(finite, none)),
    ]
    rows += [Row(f"memory of a step, {name}", mib, "MiB") for name, mib in memory.items()]
    return Result(rows, times.medians("due step"))


def grown_mib(method: str, quick: bool) -> float:
    """By how much two due steps raise the peak memory of this process, a fresh one."""
    torch.set_num_threads(1)
    trainer = Trainer(demo(*METHODS[method], quick=quick))
    before = _status_mib("VmRSS")
    for _ in range(2):
        trainer.step(CYCLE - 1)
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    """A line of Linux's own account; `ru_maxrss` would include the parent's size."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else 0.0

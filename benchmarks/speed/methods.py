"""One process, one thread, demo settings. Steps on which both penalties of G and that of D are due,
by finite differences and by double backward, step in turns with one without the penalties of G;
the ratio is that of the medians. Memory is what the peak resident size of a fresh process grows by
in two such steps, over its size with data, networks and optimizers in place. For information:
there is no bar."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.speed.steps import CYCLE, contender, demo, in_turns, medians, ratio
from benchmarks.table import Result, Row

NONE = "no penalty of G"
METHODS = {
    "exact": ("objective.penalty_method=exact",),
    "finite_difference": ("objective.penalty_method=finite_difference",),
    NONE: ("objective.gamma=0", "objective.flatness=0"),
}


def measure(quick: bool) -> Result:
    """Time and memory of the two penalty methods."""
    sides = {name: contender(demo(*o, quick=quick)) for name, o in METHODS.items()}
    seconds, _ = in_turns(sides, [CYCLE - 1], rounds=1 if quick else 5)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        memory = dict(zip(METHODS, pool.map(grown_mib, METHODS, [quick] * 3), strict=True))
    rows = [
        Row("penalty step, exact / finite_difference", ratio(seconds, *[*METHODS][:2])),
        Row("penalty step, finite_difference / none", ratio(seconds, *[*METHODS][1:])),
    ]
    rows += [Row(f"memory of a step, {name}", mib, "MiB") for name, mib in memory.items()]
    return Result(rows, medians(seconds, "due step"))


def grown_mib(method: str, quick: bool) -> float:
    """By how much two due steps raise the peak memory of this process, a fresh one."""
    torch.set_num_threads(1)
    side = contender(demo(*METHODS[method], quick=quick))
    before = _status_mib("VmRSS")
    for _ in range(2):
        side.step(CYCLE - 1)
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    """A line of Linux's own account; `ru_maxrss` would include the parent's size."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kib) / 1024

"""The start-up probe: try every execution, keep those that agree, take the fastest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aalnet.networks import DataSpec, Generator
from deploy.endpoint.executions import (
    AGREEMENT,
    SPREAD,
    Execution,
    Plan,
    Runner,
    candidates,
    longest_batch,
    seconds_of,
    sizes_up_to,
)
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class Trial:
    """What the probe found about one execution. `plan` is None where it may not be used."""

    name: str
    plan: Plan | None
    one_s: float
    batch_s: float
    difference: float
    remark: str

    @property
    def score(self) -> float:
        """Seconds of a sample: alone and in a full batch weigh alike."""
        assert self.plan is not None
        return math.sqrt(self.one_s * self.batch_s / self.plan.batch_samples)


def probe(generator: Generator, spec: DataSpec, size_px: int, settings: EndpointSettings) -> Plan:
    """The fastest plan whose output agrees to AGREEMENT; logs the table of all."""
    device = next(generator.parameters()).device
    sizes = sizes_up_to(settings.batch_samples, coarse=False)
    eager = Plan(Execution(), sizes, (1, 1, 1))
    largest = longest_batch(Runner(generator, spec, size_px, eager), sizes)
    found = []
    for execution in candidates(device, settings):
        coarse = sizes_up_to(largest, coarse=execution.compiled)
        try:
            found.append(_try(generator, spec, size_px, Plan(execution, coarse, (1, 1, 1))))
        except (RuntimeError, ImportError) as error:  # torch.compile without a compiler, say
            reason = f"failed: {type(error).__name__}"
            found.append(Trial(execution.name, None, math.nan, math.nan, math.nan, reason))
    usable = [trial for trial in found if trial.plan is not None]
    chosen = usable[0].plan if usable else Plan(Execution(), (1,), (1, 1, 1))
    assert chosen is not None
    best = usable[0].score if usable else math.inf
    for trial in usable[1:]:
        if trial.plan is not None and trial.score < best * (1 - SPREAD):
            chosen, best = trial.plan, trial.score
    log.info("executions, %d px, batches up to %d samples:\n%s", size_px, largest, _table(found))
    log.info("takes %s; stages run at %s rows or more", chosen.execution.name, chosen.floors)
    return chosen


def _try(generator: Generator, spec: DataSpec, size_px: int, plan: Plan) -> Trial:
    """Measure one execution beside the eager generator."""
    device = next(generator.parameters()).device
    runner = Runner(generator, spec, size_px, plan)
    batch = runner.inputs(plan.batch_samples)
    condition, _, label, noise = (part.to(device) for part in batch)
    with torch.inference_mode():
        expected = generator(condition, label, noise[:, None])[:, 0].clamp(-1, 1).cpu()
    difference = float((runner.draw(*batch) - expected).abs().max())
    remark = "" if difference <= AGREEMENT else "differs"
    if device.type == "cpu":
        floors = _floors(runner)
        if floors is None:
            remark = remark or "bits depend on the place in a batch"
        else:
            plan = runner.plan = replace(plan, floors=floors)
    one = runner.inputs(1)
    one_s = seconds_of(lambda: runner.draw(*one), device)
    batch_s = seconds_of(lambda: runner.draw(*batch), device)
    if plan.execution.compiled:  # no graph is left to be made while requests wait
        for size in plan.sizes:
            runner.draw(*runner.inputs(size))
    return Trial(plan.execution.name, None if remark else plan, one_s, batch_s, difference, remark)


@torch.inference_mode()
def _floors(runner: Runner) -> tuple[int, int, int] | None:
    """Per stage, the smallest size from which on all sizes give every row the same bits.

    None where even a full batch does not, when its rows change places.
    """
    condition, owner, label, noise = runner.inputs(runner.plan.batch_samples)
    encoded = runner.encode(condition)
    modulations = runner.modulate(label, noise)
    full = (encoded, modulations, (runner.decode(encoded, owner, modulations),))
    runs: tuple[Callable[[Tensor], tuple[Tensor, ...]], ...] = (
        lambda rows: runner.encode(condition[rows]),
        lambda rows: runner.modulate(label[rows], noise[rows]),
        lambda rows: (runner.decode(encoded, rows, tuple(m[rows] for m in modulations)),),
    )
    floors = [_floor(run, all_rows, runner.plan.sizes) for run, all_rows in zip(runs, full)]  # noqa: B905
    if any(floor is None for floor in floors):
        return None
    return (floors[0] or 1, floors[1] or 1, floors[2] or 1)


def _floor(
    run: Callable[[Tensor], tuple[Tensor, ...]], full: tuple[Tensor, ...], sizes: tuple[int, ...]
) -> int | None:
    """The floor of one stage; rows are run in reverse, so that each also changes its place."""
    floor: int | None = None
    for size in reversed(sizes):
        rows = torch.arange(sizes[-1]).flip(0)[:size]
        parts = zip(run(rows), full, strict=True)
        if not all(torch.equal(part[:size], whole[rows]) for part, whole in parts):
            break
        floor = size
    return floor


def _table(found: list[Trial]) -> str:
    lines = [f"{'execution':28} {'1 sample':>10} {'full batch':>11} {'difference':>11}"]
    for trial in found:
        lines.append(
            f"{trial.name:28} {trial.one_s * 1e3:7.2f} ms {trial.batch_s * 1e3:8.2f} ms "
            f"{trial.difference:11.1e} {trial.remark}".rstrip()
        )
    return "\n".join(lines)

"""The start-up probe: try every execution, keep those that agree, take the fastest."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from aalnet.networks import DataSpec, Generator
from aalnet.sampling import draw, from_uint8
from deploy.endpoint.executions import (
    AGREEMENT,
    ONE_OF_EACH,
    SPREAD,
    Batch,
    Execution,
    Fewest,
    Plan,
    Runner,
    Samples,
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
    sizes = sizes_up_to(settings.batch_samples)
    largest = longest_batch(Runner(generator, spec, size_px, Plan(Execution(), sizes)), sizes)
    sizes = sizes_up_to(largest)
    found = []
    for execution in candidates(device, settings):
        try:
            found.append(_try(generator, spec, size_px, Plan(execution, sizes)))
        except (RuntimeError, ImportError) as error:  # torch.compile without a compiler, say
            reason = f"failed: {type(error).__name__}"
            found.append(Trial(execution.name, None, math.nan, math.nan, math.nan, reason))
    usable = [trial for trial in found if trial.plan is not None]
    chosen = usable[0].plan if usable else Plan(Execution(), (1,))
    assert chosen is not None
    best = usable[0].score if usable else math.inf
    for trial in usable[1:]:
        if trial.plan is not None and trial.score < best * (1 - SPREAD):
            chosen, best = trial.plan, trial.score
    log.info("executions, %d px, batches up to %d samples:\n%s", size_px, largest, _table(found))
    log.info(
        "takes %s; runs %d conditions, %d rows and %d noises or more", chosen.execution.name,
        chosen.fewest.conditions, chosen.fewest.rows, chosen.fewest.noises,
    )  # fmt: skip
    return chosen


def _try(generator: Generator, spec: DataSpec, size_px: int, plan: Plan) -> Trial:
    """Measure one execution beside the eager generator."""
    runner = Runner(generator, spec, size_px, plan)
    one, batch = runner.inputs(1), runner.inputs(plan.batch_samples)
    drawn = runner.draw(batch)
    difference = float(np.abs(drawn.images - _eager(generator, batch)).max())
    remark = "" if difference <= AGREEMENT else "differs"
    if runner.device.type == "cpu":
        fewest = _fewest(runner, batch, drawn)
        if fewest is None:
            remark = remark or "bits depend on the place in a batch"
        runner.plan = plan = replace(plan, fewest=fewest or ONE_OF_EACH)
    with _lock_wanted():
        one_s = seconds_of(lambda: runner.draw(one))
        batch_s = seconds_of(lambda: runner.draw(batch))
    return Trial(plan.execution.name, None if remark else plan, one_s, batch_s, difference, remark)


@torch.inference_mode()
def _eager(generator: Generator, batch: Batch) -> NDArray[np.float32]:
    """What the generator itself draws for a batch of distinct conditions."""
    device = next(generator.parameters()).device
    condition = from_uint8(batch.condition).to(device)
    label, noise = (torch.from_numpy(part).to(device) for part in (batch.label, batch.noise))
    images: NDArray[np.float32] = (
        draw(generator, condition, label, noise[:, None]).cpu()[:, 0].numpy()
    )
    return images


@contextlib.contextmanager
def _lock_wanted() -> Iterator[None]:
    """Another thread holds Python's lock all the time, as the one that speaks HTTP nearly does.

    What takes the lock again between its operations looks fast only while nobody asks anything.
    """
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            sum(range(100))

    holder = threading.Thread(target=hold, name="holds the lock")
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()


def _fewest(runner: Runner, full: Batch, drawn: Samples) -> Fewest | None:
    """The smallest size of each stage from which on every row keeps its bits.

    None where even a full batch does not, when its rows change places.
    """
    most = runner.plan.batch_samples
    backwards = np.arange(most)[::-1].copy()

    def some_conditions(size: int) -> tuple[Batch, NDArray[np.int64]]:
        rows = backwards[:size]
        again = np.resize(np.arange(size), most)  # every row must still be there: some twice
        part = rows[again]
        return Batch(full.condition[rows], again, full.label[part], full.noise[part]), part

    def some_rows(size: int) -> tuple[Batch, NDArray[np.int64]]:
        rows = backwards[:size]
        return Batch(full.condition, rows, full.label[rows], full.noise[rows]), rows

    found = Fewest(noises=most)  # one stage after the other
    stages = {"conditions": some_conditions, "rows": some_rows, "noises": some_rows}
    for stage, some in stages.items():
        runner.plan = replace(runner.plan, fewest=found._replace(**{stage: 1}))
        fewest = None
        for size in reversed(runner.plan.sizes):
            batch, rows = some(size)
            if not np.array_equal(runner.draw(batch).images, drawn.images[rows]):
                break
            fewest = size
        if fewest is None:
            return None
        found = found._replace(**{stage: fewest})
    return found


def _table(found: list[Trial]) -> str:
    lines = [f"{'execution':28} {'1 sample':>10} {'full batch':>11} {'difference':>11}"]
    for trial in found:
        lines.append(
            f"{trial.name:28} {trial.one_s * 1e3:7.2f} ms {trial.batch_s * 1e3:8.2f} ms "
            f"{trial.difference:11.1e} {trial.remark}".rstrip()
        )
    return "\n".join(lines)

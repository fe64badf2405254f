"""The training loop of one worker: read, step, log, checkpoint. Knows no Ray and no threads.

Flow: Pairs -> read_batches -> Batch -> step (aalnet) -> Meter -> metrics.jsonl;
TrainState -> checkpoint -> Store.
"""

from __future__ import annotations

import time
from contextlib import closing

import torch

from aalnet.baselines import STEPS
from aalnet.errors import AalnetError, CheckpointError, NonFiniteError
from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.update import learning_rate
from cluster import checkpoint
from cluster.data import Pairs
from cluster.keeper import Keeper, Report
from cluster.reader import read_batches
from cluster.runs import Run
from cluster.telemetry import Meter
from cluster.world import ProcessWorld


def train(
    run: Run, settings: Settings, world: ProcessWorld, device: torch.device, report: Report
) -> None:
    """Train this worker's share until the run's images are seen; resumes by itself.

    Raises:
        NonFiniteError: a term or gradient is not finite; says where the last checkpoint is.
    """
    pairs = Pairs(settings.data.train, settings.data.size_px, settings.data.memory_budget_mib)
    pairs.preload()
    state = TrainState(settings, pairs.spec, device)
    _resume(run, state, world)
    keeper = Keeper(run, state, world, report)
    keeper.start()
    try:
        _steps(run, state, pairs, world, keeper)
    except NonFiniteError as error:
        told = f"{error}. Last whole checkpoint of `{run.name}`: {_newest(run):,} images"
        keeper.end("failed", told)
        raise NonFiniteError(told) from error
    except AalnetError as error:
        keeper.end("failed", str(error))
        raise
    keeper.end("finished")


def _steps(run: Run, state: TrainState, pairs: Pairs, world: ProcessWorld, keeper: Keeper) -> None:
    settings, size = state.settings, state.settings.data.batch_images
    step, meter = STEPS[settings.model], Meter(settings.run.images)
    asked_s = time.perf_counter()
    reading = read_batches(pairs, settings, state.images_seen, world.rank, world.size)
    with closing(reading) as batches:
        for batch in batches:
            started_s = time.perf_counter()
            terms = step(state, state.place(batch), world)
            done_s = time.perf_counter()
            meter.add(terms, size, step_s=done_s - started_s, data_s=started_s - asked_s)
            last = state.images_seen >= settings.run.images
            saves = last or _crossed(state, settings.run.checkpoint_every_images)
            # Before each checkpoint too: a resumed run's means then span the same steps.
            if world.rank == 0 and (saves or _crossed(state, settings.run.log_every_images)):
                lr = learning_rate(settings.optimizer, settings.run, state.images_seen)
                run.log(meter.record(state.images_seen, state.steps, lr))
            if saves:
                keeper.checkpoint()
            asked_s = time.perf_counter()


def _crossed(state: TrainState, every_images: int) -> bool:
    """Did the last step pass a multiple of `every_images`?"""
    before = state.images_seen - state.settings.data.batch_images
    return before // every_images < state.images_seen // every_images


def _newest(run: Run) -> int:
    """Images of the newest whole checkpoint, 0 without one."""
    found = checkpoint.checkpoints(run)
    return found[-1].images if found else 0


def _resume(run: Run, state: TrainState, world: ProcessWorld) -> None:
    """Go on from the newest whole checkpoint, the one that worker 0 sees."""
    newest = world.agree(_newest(run), state.device)
    if newest:
        try:
            checkpoint.restore(state, checkpoint.Checkpoint(run, newest))
        except CheckpointError as error:
            raise CheckpointError(f"cannot resume run `{run.name}`: {error}") from error
    if world.rank == 0:
        run.forget_after(state.images_seen)
    world.agree(0, state.device)

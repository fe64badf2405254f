"""The training loop of one worker: read, step, log, checkpoint. Knows no Ray and no signals.

Flow: Pairs -> read_batches -> Batch -> step (aalnet) -> Meter -> metrics.jsonl;
TrainState -> Saver -> checkpoint -> Store.
"""

from __future__ import annotations

import time
from contextlib import closing

import torch

from aalnet.errors import AalnetError, NonFiniteError
from aalnet.settings import Settings
from aalnet.state import TrainState
from aalnet.step import train_step
from aalnet.update import learning_rate
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from cluster.runs.checkpoint import Checkpoint, checkpoints, newest_whole, restore
from cluster.runs.run import Run
from cluster.telemetry.meter import Meter
from cluster.training.precision import resolved
from cluster.training.recorder import Launch, Recorder, Report
from cluster.training.world import ProcessWorld


def train(
    run: Run,
    settings: Settings,
    world: ProcessWorld,
    device: torch.device,
    report: Report,
    launch: Launch,
) -> str:
    """Train this worker's share until the run's images are seen; resumes by itself.

    Gives `finished`, or `stopped` where `world` was asked to stop: then the state is saved.

    Raises:
        NonFiniteError: a term or gradient is not finite; says where the last checkpoint is.
        StoreError: the storage failed for longer than the settings allow.
    """
    data = settings.data
    pairs = Pairs(data.train, data.size_px, data.memory_budget_mib, data.cache_gib)
    pairs.preload()
    settings = resolved(settings, run, pairs, world, device)
    state = TrainState(settings, pairs.spec, device)
    warnings = _resume(run, state, world)
    recorder = Recorder(run, state, world, report, launch)
    recorder.start(warnings)
    try:
        if _steps(state, pairs, world, recorder, launch):
            recorder.finish()
            return "finished"
        recorder.stop()
        return "stopped"
    except NonFiniteError as error:
        recorder.flush()
        newest = max((checkpoint.images for checkpoint in checkpoints(run)), default=0)
        message = f"{error}. Last whole checkpoint of `{run.name}`: {newest:,} images"
        recorder.fail(message, cause="non_finite")
        raise NonFiniteError(message) from error
    except AalnetError as error:
        recorder.flush()
        recorder.fail(str(error))
        raise
    finally:
        recorder.telemetry.close()


def _steps(
    state: TrainState, pairs: Pairs, world: ProcessWorld, recorder: Recorder, launch: Launch
) -> bool:
    """Step to the end: True. False: a worker was asked to stop."""
    settings, size = state.settings, state.settings.data.batch_images
    meter = Meter(settings.run.images)
    wait_started_s = time.perf_counter()
    reading = read_batches(pairs, settings, state.images_seen, world.rank, world.size)
    with closing(reading) as batches:
        for batch in batches:
            started_s = time.perf_counter()
            terms = train_step(state, state.place(batch), world)
            done_s = time.perf_counter()
            meter.add(terms, size, step_s=done_s - started_s, data_s=started_s - wait_started_s)
            sums_s = world.take_sums_s()
            recorder.telemetry.add_step(
                size, done_s - started_s, started_s - wait_started_s, sums_s
            )
            last = state.images_seen >= settings.run.images
            saves = last or _crossed(state, settings.run.checkpoint_every_images)
            stops = world.stopping and not last
            # Before each checkpoint too: a resumed run's means then span the same steps.
            logs = saves or stops or _crossed(state, settings.run.log_every_images)
            if logs:
                lr = learning_rate(settings.optimizer, settings.run, state.images_seen)
                recorder.log(**meter.record(state.images_seen, state.steps, lr))
            if saves:
                recorder.checkpoint()
            elif (logs and launch.node_is_draining()) or launch.save_requested.is_set():
                recorder.save({})
            recorder.check()
            if stops:
                return False
            wait_started_s = time.perf_counter()
    return True


def _crossed(state: TrainState, every_images: int) -> bool:
    """Did the last step pass a multiple of `every_images`?"""
    before = state.images_seen - state.settings.data.batch_images
    return before // every_images < state.images_seen // every_images


def _resume(run: Run, state: TrainState, world: ProcessWorld) -> list[str]:
    """Go on from the newest whole checkpoint, the one that worker 0 finds; gives warnings."""
    warnings: list[str] = []
    images = 0
    if world.rank == 0:
        newest = newest_whole(run, lambda candidate: restore(state, candidate), warnings.append)
        images = newest[0].images if newest else 0
    images = world.agree(images)
    if world.rank != 0 and images:
        restore(state, Checkpoint(run, images))
    return warnings

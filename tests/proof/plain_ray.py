"""Part of `chaos`: what somebody writes with Ray Train and nothing else, as its guide says.

The model, the step and the data are ours; the checkpoints, the storage and the restarts are Ray's.
Run as a program: settings file, storage, name, progress file, images between checkpoints.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from aalnet.settings import load_settings, parse_settings
from aalnet.state import TrainState
from aalnet.step import train_step
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from cluster.training.world import current_world


def work(config: dict[str, Any]) -> None:
    """One worker: restore, step, report a checkpoint every so often."""
    settings = parse_settings(config["settings"])
    torch.set_num_threads(1)
    world = current_world()
    pairs = Pairs(settings.data.train, settings.data.size_px, settings.data.memory_budget_mib)
    pairs.preload()
    state = TrainState(settings, pairs.spec, torch.device("cpu"))
    if found := ray.train.get_checkpoint():
        with found.as_directory() as folder:
            held = torch.load(Path(folder) / "state.pt", weights_only=True)
        state.load_tensors(held["tensors"])
        state.images_seen, state.steps = held["images_seen"], held["steps"]
    batches = read_batches(pairs, settings, state.images_seen, world.rank, world.size)
    for batch in batches:
        started_s = time.perf_counter()
        train_step(state, state.place(batch), world)
        if world.rank == 0:
            _note(Path(config["progress"]), state.images_seen, time.perf_counter() - started_s)
        if state.images_seen % config["every_images"] == 0:
            _report(state, world.rank)


def _report(state: TrainState, rank: int) -> None:
    metrics = {"images": state.images_seen}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        held = {
            "tensors": state.tensors(), "images_seen": state.images_seen, "steps": state.steps
        }  # fmt: skip
        torch.save(held, Path(folder) / "state.pt")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _note(path: Path, images: int, step_s: float) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{images} {time.time():.3f} {step_s:.6f}\n")


def main() -> None:
    """The driver."""
    config, storage, name, progress, every_images = sys.argv[1:]
    settings = load_settings(config, [])
    variables = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "PYTHONPATH"))}
    ray.init("local", num_cpus=2, log_to_driver=False, configure_logging=False)
    TorchTrainer(
        work,
        train_loop_config={
            "settings": settings.to_dict(),
            "progress": progress,
            "every_images": int(every_images),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": variables},
        ),
    ).fit()


if __name__ == "__main__":
    main()

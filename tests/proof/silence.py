"""`python -m tests.proof.silence [--models aalnet,vae] [--seeds 20]`: no seed may fall silent.

Trains each model from many seeds, at the demo's settings, for few images, and measures the spread
of its samples: their distance from each other over that to the target (docs/evaluation.md), 1 for
the true distribution, below 0.1 for a network that ignores its noise. Fails where one does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import get_args

import torch

from aalnet.settings import Settings, load_settings
from cluster.runs.checkpoint import find_checkpoint
from cluster.runs.figures import SILENT_BELOW, spread
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.short_runs import trained
from tests.support.tiny_runs import ROOT

MODELS = get_args(Settings.model_fields["model"].annotation)
SAMPLES = 2  # of a condition: enough for a spread


def main() -> None:
    """Train, measure, print a line a model."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.silence", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(ROOT)  # the demo's data paths
    silent = 0
    for model in options.models.split(","):
        spreads = [
            spread_of(model, seed, options.images, options.changes) for seed in range(options.seeds)
        ]
        silent += sum(value < SILENT_BELOW for value in spreads)
        print(model, " ".join(f"{value:.2f}" for value in sorted(spreads)), flush=True)
    print(f"{silent} silent of {options.seeds} seeds of each model")
    sys.exit(silent > 0)


def spread_of(model: str, seed: int, images: int, changes: list[str]) -> float:
    """The spread after so many images from a seed."""
    settings = load_settings("configs/demo.yaml", [
        f"model={model}", f"run.seed={seed}", f"run.images={images}", "run.workers=0",
        f"run.checkpoint_every_images={images}", f"evaluation.samples={SAMPLES}",
        "run.grid_conditions=1", "telemetry.port=0", "run.threads=1", *changes,
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        if trained(Run(store, "one"), settings) != "finished":
            sys.exit("stopped")
        share = spread(find_checkpoint(store, "one").manifest().figures)
    assert share is not None
    print(f"{model} seed {seed}: {share:.3f}", file=sys.stderr, flush=True)
    return share


if __name__ == "__main__":
    main()

"""`aalnet evaluate`: figures of a checkpoint on held-out pairs."""

from __future__ import annotations

import copy
import json
import math
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aalnet.evaluation import Figures
from aalnet.sampling import best_device
from aalnet.settings import parse_settings
from cluster.commands.options import Json, Storage
from cluster.runs.checkpoint import Checkpoint, find_checkpoint, load_generator
from cluster.runs.figures import figures as figures_of
from cluster.storage.location import open_store
from cluster.training.held_out import HeldOut

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="run, run@images, run@best or a path", metavar="RUN|CHECKPOINT")
    ],
    data: Annotated[str | None, typer.Option(help="other held-out pairs (Parquet)")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="samples per condition")] = None,
    features: Annotated[
        str | None, typer.Option(help="TorchScript feature network for the KID")
    ] = None,
    storage: Storage = "./aalnet-runs",
    as_json: Json = False,
) -> None:
    """Measure a checkpoint on held-out pairs, beside returning the condition."""
    checkpoint = find_checkpoint(open_store(storage), model)
    figures = evaluate_checkpoint(checkpoint, data=data, k=k, features=features)
    if as_json:
        # An infinite PSNR (all images exact) has no place in JSON.
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        print(json.dumps({"run": checkpoint.run.name, "images_seen": checkpoint.images, **finite}))
        return
    count = f"{figures['images']:,} held-out pairs, k = {figures['k']}"
    table = Table(title=f"{checkpoint.run.name} at {checkpoint.images:,} images: {count}")
    for head in ("figure", "model", "the condition", ""):
        table.add_column(head, justify="left" if head in ("figure", "") else "right")
    for figure in figures_of(figures):
        floor = "" if figure.floor is None else f"{figure.floor:.4f}"
        verdict = {True: "better", False: "worse", None: ""}[figure.better]
        table.add_row(figure.name, f"{figure.value:.4f}", floor, verdict)
    Console().print(table)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    *,
    data: str | None = None,
    k: int | None = None,
    features: str | None = None,
) -> Figures:
    """All figures of a checkpoint, on its own held-out pairs or others."""
    device = best_device()
    manifest = checkpoint.manifest()
    values = copy.deepcopy(dict(manifest.settings))
    if data is not None:
        values["data"]["test"] = data
    if features is not None:
        values["evaluation"]["features"] = features
    generator, _ = load_generator(checkpoint, device)
    held_out = HeldOut(parse_settings(values), manifest.spec, device)
    return held_out.evaluate(generator, k)

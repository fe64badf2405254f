"""`aalnet evaluate`: figures of a checkpoint on held-out pairs."""

from __future__ import annotations

import copy
import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aalnet.evaluation import Figures, few_pairs
from aalnet.sampling import best_device
from aalnet.settings import parse_settings
from cluster.commands.options import Json, Storage, Temperature
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
        str | None, typer.Option(help="TorchScript network for what is measured in features")
    ] = None,
    temperature: Temperature = 1.0,
    storage: Storage = "./aalnet-runs",
    as_json: Json = False,
) -> None:
    """Measure a checkpoint on held-out pairs, beside returning the condition."""
    checkpoint = find_checkpoint(open_store(storage), model)
    figures = evaluate_checkpoint(
        checkpoint, data=data, k=k, features=features, temperature=temperature
    )
    if (warning := few_pairs(int(figures["images"]))) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        facts = {"run": checkpoint.run.name, "images_seen": checkpoint.images}
        print(json.dumps({**facts, "temperature": temperature, **figures}))
        return
    count = f"{figures['images']:,} held-out pairs, k = {figures['k']}"
    if temperature != 1:
        count += f", temperature {temperature:g}"
    table = Table(title=f"{checkpoint.run.name} at {checkpoint.images:,} images: {count}")
    for head in ("figure", "model", "±", "the condition", ""):
        table.add_column(head, justify="left" if head in ("figure", "") else "right")
    for figure in figures_of(figures):
        floor = "" if figure.floor is None else f"{figure.floor:.4f}"
        verdict = {True: "better", False: "worse", None: ""}[figure.better]
        error = "" if figure.standard_error is None else f"{figure.standard_error:.4f}"
        table.add_row(figure.name, f"{figure.value:.4f}", error, floor, verdict)
    Console().print(table)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    *,
    data: str | None = None,
    k: int | None = None,
    features: str | None = None,
    temperature: float = 1.0,
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
    return held_out.evaluate(generator, k, temperature)

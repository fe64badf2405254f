"""`aalnet compare`: aalnet, gan and vae on the same data, images and seed, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from aalnet.errors import ConfigError
from aalnet.evaluation import Figures
from aalnet.sampling import best_device, grid
from aalnet.settings import Settings, load_settings
from cluster.commands.evaluate import evaluate_checkpoint
from cluster.commands.options import Address, Json, Set, Storage, with_workers
from cluster.commands.train import train_run
from cluster.data.pictures import png
from cluster.runs.checkpoint import Checkpoint, find_checkpoint, load_generator
from cluster.runs.figures import HIGHER_IS_BETTER, floor_of, names
from cluster.runs.run import Run
from cluster.storage.location import open_store
from cluster.training.held_out import HeldOut
from cluster.view.progress import number

app = typer.Typer(add_completion=False)
KNOWN = ("aalnet", "gan", "vae")
SAMPLES = 4  # of each model, in the picture


@app.command()
def compare(
    config: Annotated[str, typer.Argument(help="settings file (YAML)", metavar="CONFIG")],
    models: Annotated[str, typer.Option(help="which, separated by commas")] = ",".join(KNOWN),
    overrides: Set = None,
    run: Annotated[
        str | None,
        typer.Option(help="runs are called NAME-MODEL; default: the file's", metavar="NAME"),
    ] = None,
    storage: Storage = "./aalnet-runs",
    workers: Annotated[str | None, typer.Option(help="as for `aalnet train`")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train each model on the same images with the same seed, then measure all alike.

    A model that is trained already is not trained again. The table and the picture go to
    <storage>/comparisons/NAME.
    """
    names, changes = models_of(models), with_workers(overrides, workers)
    store, name = open_store(storage), Path(config).stem if run is None else run
    settings = {model: load_settings(config, [*changes, f"model={model}"]) for model in names}
    for model in names:
        print(f"== {model} ==")
        train_run(Run(store, f"{name}-{model}"), settings[model], address)
    newest = {model: find_checkpoint(store, f"{name}-{model}") for model in names}
    figures = {
        model: {**evaluate_checkpoint(checkpoint), **cost(checkpoint)}
        for model, checkpoint in newest.items()
    }
    prefix = f"comparisons/{name}"
    store.write(f"{prefix}/comparison.json", json.dumps(figures, indent=1).encode())
    store.write(f"{prefix}/comparison.png", picture(newest, settings[names[0]]))
    if as_json:
        print(json.dumps(figures))
        return
    Console().print(table(name, figures))
    print(f"picture  {store.uri}/{prefix}/comparison.png")


def models_of(text: str) -> list[str]:
    """The models named in `aalnet,gan,vae`, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in KNOWN]
    if unknown or not names:
        raise ConfigError(f"--models must name some of {', '.join(KNOWN)}, got `{text}`")
    return names


def cost(checkpoint: Checkpoint) -> dict[str, float | int]:
    """What a run's training took, over all its starts."""
    ends = [record for record in checkpoint.run.records() if record["kind"] == "end"]
    seconds = sum(float(record["train_seconds"]) for record in ends)
    return {"images_seen": checkpoint.images, "train_seconds": round(seconds, 1)}


def table(name: str, figures: dict[str, Figures]) -> Table:
    """One row a figure, one column a model, the best of each row marked."""
    first = next(iter(figures.values()))
    result = Table(title=f"{name}: {first['images']} held-out pairs, k = {first['k']}")
    for head in ("figure", *figures, "the condition"):
        result.add_column(head, justify="left" if head == "figure" else "right")
    for key in names(first):
        values = {model: float(each[key]) for model, each in figures.items()}
        best = (max if key in HIGHER_IS_BETTER else min)(values.values())
        cells = [f"[bold]{number(v)}[/bold]" if v == best else number(v) for v in values.values()]
        floor = floor_of(first, key)
        result.add_row(key, *cells, "" if floor is None else number(floor))
    for key in ("images_seen", "train_seconds"):
        result.add_row(key, *(f"{each[key]:,}" for each in figures.values()), "")
    return result


def picture(checkpoints: dict[str, Checkpoint], settings: Settings) -> bytes:
    """Condition, target, and a few samples of every model in one row."""
    device = best_device()
    heads = ["condition", "target"]
    rows: list[list[torch.Tensor]] = []
    held_out: HeldOut | None = None
    for model, checkpoint in checkpoints.items():
        generator, _ = load_generator(checkpoint, device)
        if held_out is None:
            held_out = HeldOut(settings, checkpoint.manifest().spec, device)
        model_rows = held_out.grid_rows(generator, SAMPLES)
        rows = rows or [row[:2] for row in model_rows]
        rows = [before + row[2:] for before, row in zip(rows, model_rows, strict=True)]
        heads += [model, *[""] * (SAMPLES - 1)]
    return png(grid(rows, heads))

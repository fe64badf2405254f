"""`aalnet promote`: point a model's name to a checkpoint, or back to the one before."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aalnet.errors import ConfigError
from cluster.commands.options import Storage
from cluster.runs import promotions
from cluster.runs.checkpoint import find_checkpoint
from cluster.storage.location import open_store

app = typer.Typer(add_completion=False)


@app.command()
def promote(
    checkpoint: Annotated[
        str | None, typer.Argument(help="run, run@images or run@best", metavar="RUN[@IMAGES]")
    ] = None,
    model: Annotated[str, typer.Option(help="the model's name", metavar="NAME")] = "",
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="point the name to what it pointed to before")
    ] = False,
    storage: Storage = "./aalnet-runs",
) -> None:
    """Point a model's name to a checkpoint, after checking every byte of it.

    Endpoints that serve the name follow it. What a name points to is never removed.
    """
    store = open_store(storage)
    if not model:
        models = ", ".join(promotions.list_models(store)) or "none yet"
        raise ConfigError(f"--model NAME is missing; models in {store.uri}: {models}")
    if roll_back == (checkpoint is not None):
        raise ConfigError("give either RUN[@IMAGES] or --roll-back")
    if checkpoint is None:
        now = promotions.roll_back(store, model)
    else:
        chosen = find_checkpoint(store, checkpoint)
        now = promotions.promote(store, chosen, model)
        if (text := promotions.silence_of(chosen)) is not None:
            print(f"warning: {text}", file=sys.stderr)
    print(f"model `{model}` is {now.run}@{now.images} ({now.digest[:12]})")

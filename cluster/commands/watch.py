"""`aalnet watch RUN`, also `aalnet runs watch RUN`: how a run goes on, until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from cluster.commands.options import Storage
from cluster.runs.run import Record, find_run, latest, run_status
from cluster.storage.location import open_store
from cluster.view.progress import ProgressView, duration, follow
from cluster.view.run_screen import RunScreen

app = typer.Typer(add_completion=False)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="a name from `aalnet runs list`")]


@app.command()
def watch(name: RunName, storage: Storage = "./aalnet-runs") -> None:
    """Show how a run goes on, until it ends. Exit code 1 if it failed.

    On a terminal a page of figures with sparklines, elsewhere plain lines.
    """
    run, settings = find_run(open_store(storage), name)
    records = run.records()
    status = run_status(records)
    live = sys.stdout.isatty()
    if status == "finished" and not live:
        print(f"run `{name}` is finished: {records[-1]['images']:,} images")
        return
    if status == "stopped":
        quiet = f"; nothing logged for {_age(records[-1])}" if records else ""
        print(f"run `{name}` is not running{quiet}; Ctrl-C leaves", file=sys.stderr)
    with RunScreen(name, settings) if live else ProgressView(settings.run.images) as view:
        before = records if status == "finished" else records[:-1]
        if isinstance(view, RunScreen):
            view.restore(before)
        else:
            for record in _newest(before):
                view.show(record)
        if status == "finished":
            return
        last: Record = {}
        for record in follow(run, from_records=len(before)):
            last = record
            view.show(record)
    if last.get("status") == "failed":
        raise typer.Exit(1)


def _newest(records: list[Record]) -> Iterator[Record]:
    """What plain lines begin with: the last evaluation and the last means."""
    for kind in ("evaluation", "train"):
        if record := latest(records, kind):
            yield record


def _age(record: Record) -> str:
    time_s = record.get("time_s")
    return "-" if time_s is None else duration(max(time.time() - time_s, 0.0))

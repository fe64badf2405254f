"""`aalnet watch RUN`, also `aalnet runs watch RUN`: how a run goes on, until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Self

import typer

from aalnet.settings import Settings
from cluster.commands.options import Storage
from cluster.runs.run import Record, Run, find_run, run_status
from cluster.storage.location import open_store
from cluster.view.progress import ProgressView, duration, follow, latest, number, progress_of
from cluster.view.run_screen import LogScreen, RunScreen
from cluster.view.scrape import Sample, looks
from cluster.view.screen import History, figures_of

LINE_EVERY_S = 10.0
IMAGES = "aalnet_run_images"

app = typer.Typer(add_completion=False)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="a name from `aalnet runs list`")]
Url = Annotated[
    str | None, typer.Option(help="read a scrape address instead of the storage", metavar="URL")
]


@app.command()
def watch(name: RunName, storage: Storage = "./aalnet-runs", url: Url = None) -> None:
    """Show how a run goes on, until it ends. Exit code 1 if it failed.

    On a terminal a page of figures with sparklines, elsewhere plain lines.
    """
    status = _watch_address(name, url) if url else _watch_log(*find_run(open_store(storage), name))
    if status == "failed":
        raise typer.Exit(1)


def _watch_log(run: Run, settings: Settings) -> str:
    """Follow a run's log; gives how it ended."""
    records = run.records()
    status = run_status(records)
    live = sys.stdout.isatty()
    if status == "finished" and not live:
        print(f"run `{run.name}` is finished: {records[-1]['images']:,} images")
        return status
    if status == "stopped":
        quiet = f"; nothing logged for {_age(records[-1])}" if records else ""
        print(f"run `{run.name}` is not running{quiet}; Ctrl-C leaves", file=sys.stderr)
    with LogScreen(run.name, settings) if live else ProgressView(settings.run.images) as view:
        before = records if status == "finished" else records[:-1]
        for record in before if live else _last_words(before):
            view.show(record)
        if status == "finished":
            return status
        last: Record = {}
        for record in follow(run, from_records=len(before)):
            last = record
            view.show(record)
    return str(last.get("status", "stopped"))


def _last_words(records: list[Record]) -> Iterator[Record]:
    """What plain lines begin with: the last evaluation and the last means."""
    for kind in ("evaluation", "train"):
        if record := latest(records, kind):
            yield record


def _age(record: Record) -> str:
    time_s = record.get("time_s")
    return "-" if time_s is None else duration(max(time.time() - time_s, 0.0))


def _watch_address(name: str, url: str) -> str:
    """Scrape an address again and again; gives the run's last state."""
    found = looks("run", name, url)
    look = next(found)
    total_images = int(look.total("aalnet_run_target_images"))
    with RunScreen(name, total_images) if sys.stdout.isatty() else _Lines(total_images) as view:
        view.take(look.samples, look.state)
        for look in found:
            view.take(look.samples, look.state)
    return look.state


class _Lines:
    """A scraped run in plain lines."""

    def __init__(self, total_images: int) -> None:
        self._total_images, self._next_s, self._state = total_images, 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def take(self, samples: list[Sample], state: str) -> None:
        """A line now and then, and one for every change of state."""
        now_s = time.monotonic()
        if state == self._state and now_s < self._next_s:
            return
        self._state, self._next_s = state, now_s + LINE_EVERY_S
        history = History()
        history.add(figures_of(samples))
        words = [state, f"images {progress_of(int(history.get(IMAGES) or 0), self._total_images)}"]
        shown = {"images/s": history.get("images_per_s")}
        shown |= {"goodput": history.get("aalnet_goodput_ratio")}
        shown |= history.by("aalnet_evaluation_figure", "figure")
        for label, value in shown.items():
            if value is not None:
                words.append(f"{label} {number(value)}")
        print("  ".join(words), flush=True)

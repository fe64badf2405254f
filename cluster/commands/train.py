"""`aalnet train`: check, show the plan, train, report."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from aalnet.corners import objective_of
from aalnet.errors import CheckpointError
from aalnet.phases import spans
from aalnet.settings import RunSettings, Settings, load_settings
from cluster.background import in_background
from cluster.commands.options import Address, Set, Storage, with_workers
from cluster.data.pairs import Pairs
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs import checkpoint
from cluster.runs.run import Run
from cluster.storage.fenced import leased
from cluster.storage.lease import ray_job
from cluster.storage.location import open_store
from cluster.training.stop import Stop, Stopped
from cluster.view.progress import ProgressView, follow
from cluster.view.report import build_report

app = typer.Typer(add_completion=False)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="settings file (YAML)", metavar="CONFIG")],
    overrides: Set = None,
    run: Annotated[str | None, typer.Option(help="name of the run; default: the file's")] = None,
    storage: Storage = "./aalnet-runs",
    workers: Annotated[
        str | None, typer.Option(help="auto, a number, or 0: in this process, without Ray")
    ] = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the plan")] = False,
) -> None:
    """Train a model. The same command again resumes it; a finished run says so and ends."""
    settings = load_settings(config, with_workers(overrides, workers))
    target = Run(open_store(storage), Path(config).stem if run is None else run)
    train_run(target, settings, address, dry_run=dry_run)
    if not dry_run:
        print_next(target)


def train_run(run: Run, settings: Settings, address: str | None, *, dry_run: bool = False) -> None:
    """Train a run to its end; what `aalnet train` and `aalnet compare` share.

    Stopped by a signal, it ends the command with that signal's exit code.
    """
    with Stop() as stop:
        sizes = check_data(settings)
        _warn_of_lost_storage(run)
        if dry_run:
            _train_run(run, settings, address, stop, sizes, dry_run=True)
            return
        run.require_same_path(settings)  # before anything is written
        with leased(run.store, run.key("lease"), f"run `{run.name}`", stop.now) as store:
            ours = Run(store, run.name)
            ours.claim(settings)
            status = _train_run(ours, settings, address, stop, sizes, dry_run=False)
    if status == "stopped":
        images = max(run.checkpoint_images(), default=0)
        at = f"{images:,} images" if images else "its start"
        print(f"run `{run.name}` is stopped at {at}; the same command goes on from there")
        raise Stopped(stop.exit_code)


def _train_run(
    run: Run,
    settings: Settings,
    address: str | None,
    stop: Stop,
    sizes: DataSizes,
    *,
    dry_run: bool,
) -> str:
    saved = checkpoint.checkpoints(run)
    images = saved[-1].images if saved else 0
    if images >= settings.run.images and _is_whole(saved[-1]):
        print(f"run `{run.name}` is finished: {images:,} images")
        if not dry_run:
            _close(run)
        return "finished"
    in_this_process = settings.run.workers == 0
    if in_this_process or (dry_run and address is None):
        placing: contextlib.AbstractContextManager[Placement] = contextlib.nullcontext(
            launcher.place_here(settings)
        )
    else:
        placing = launcher.connected(settings, address)
    with placing as placement:
        print_plan(run, settings, placement, sizes, resumed_images=images)
        if dry_run:
            return "planned"
        with watched(run, settings.run.images):
            if in_this_process:
                status = launcher.train_here(run, settings, placement, stop)
            else:
                status = launcher.train_with_ray(run, settings, placement, stop)
    run.store.write(run.key("report.html"), build_report(run).encode())
    return status


def _warn_of_lost_storage(run: Run) -> None:
    """Ray unpacks a job's files in a folder of its own, and removes it some time after the end."""
    if ray_job() and Path(run.store.uri).is_relative_to(Path.cwd()):
        warning = f"warning: {run.store.uri} is this Ray job's own folder, which Ray removes; give "
        print(f"{warning}--storage s3://bucket/prefix", file=sys.stderr)


def _close(run: Run) -> None:
    """Do what a run still does after its last checkpoint, where it was killed right then."""
    run.close_log("finished")
    if not run.store.keys(run.key("report.html")):
        run.store.write(run.key("report.html"), build_report(run).encode())


def _is_whole(last: checkpoint.Checkpoint) -> bool:
    """Is it? A damaged last checkpoint is made again, from the one before."""
    try:
        last.verify()
    except CheckpointError as error:
        print(f"warning: {error}", file=sys.stderr)
        return False
    return True


class DataSizes(NamedTuple):
    """Numbers of training pairs, held-out pairs and labels."""

    training: int
    held_out: int
    labels: int


def check_data(settings: Settings) -> DataSizes:
    """Open and check both data sets, before anything is started.

    Raises:
        DataError, ConfigError: one cannot be read, or they do not fit each other.
    """
    data = settings.data
    train_pairs = Pairs(data.train, data.size_px, data.memory_budget_mib, data.cache_gib)
    test_pairs = Pairs(data.test, data.size_px, data.memory_budget_mib, data.cache_gib)
    test_pairs.labels(train_pairs.label_names)
    test_pairs.require_channels(train_pairs.channels)
    return DataSizes(len(train_pairs), len(test_pairs), len(train_pairs.label_names))


def print_plan(
    run: Run, settings: Settings, placement: Placement, sizes: DataSizes, resumed_images: int
) -> None:
    """What will happen, before it does."""
    several = "s" if placement.workers > 1 else ""
    fewest = "" if placement.fewest is None else f"{placement.fewest} to "
    where = (
        f"{fewest}{placement.workers} Ray Train worker{several}"
        if placement.workers
        else "this process, without Ray"
    )
    data, length = settings.data, settings.run
    lines = {
        "run": f"{run.name} ({settings.model}, {settings.network.preset} "
        f"{settings.network.blocks}, {data.size_px} px)",
        "data": f"{sizes.training:,} training and {sizes.held_out:,} held-out pairs, "
        f"{sizes.labels} labels",
        "workers": f"{where} on {placement.device}, {placement.where}",
        "images": f"{length.images:,} in batches of {data.batch_images}"
        + (f", going on from {resumed_images:,}" if resumed_images else ""),
        "phases": phases_text(settings),
        "checkpoints": f"every {length.checkpoint_every_images:,} images; kept: {_kept(length)}",
        "storage": run.uri,
    }
    for name, text in lines.items():
        print(f"{name:>12}  {text}")
    sys.stdout.flush()


def phases_text(settings: Settings) -> str:
    """The run's phases with the images at which each begins."""
    phases = spans(objective_of(settings), settings.run.images)
    return ", ".join(
        f"{span.phase.name} from {span.images_seen:,}" if span.images_seen else span.phase.name
        for span in phases
    )


def _kept(length: RunSettings) -> str:
    rules = [f"the last {length.keep_last}"]
    if length.keep_best:
        rules.append(f"the best {length.keep_best} by {length.best_by}")
    if length.keep_every:
        rules.append(f"every {length.keep_every}th")
    return ", ".join(rules)


@contextlib.contextmanager
def watched(run: Run, total_images: int) -> Iterator[None]:
    """Show the progress of a run while the block trains it."""
    known = len(run.records())

    def show(done: threading.Event) -> None:
        with ProgressView(total_images) as view:
            for record in follow(run, from_records=known, stop=done):
                view.show(record)

    with in_background(show, "progress"):
        yield


def print_next(run: Run) -> None:
    """The commands that usually come next, and where to look."""
    at = (
        ""
        if run.store.uri == str(Path("aalnet-runs").absolute())
        else f" --storage {run.store.uri}"
    )
    grids = run.samples()
    print(f"\nreport      {run.uri}/report.html")
    if grids:
        print(f"samples     {run.store.uri}/{list(grids.values())[-1]}")
    print(f"next        aalnet evaluate {run.name}{at}")
    print(f"            aalnet sample {run.name} IMAGE --label LABEL -k 8 --out grid.png{at}")

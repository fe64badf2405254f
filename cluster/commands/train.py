"""`aalnet train`: check, show the plan, train, report."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from aalnet.settings import Settings, load_settings
from cluster import checkpoint, launcher
from cluster.commands.options import Address, Set, Storage
from cluster.data import Pairs
from cluster.launcher import Placement
from cluster.progress import ProgressView, follow
from cluster.report import build_report
from cluster.runs import Run
from cluster.store import open_store

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
    asked = [*(overrides or []), *([f"run.workers={workers}"] if workers is not None else [])]
    settings = load_settings(config, asked)
    target = Run(open_store(storage), Path(config).stem if run is None else run)
    train_run(target, settings, address, dry_run=dry_run)
    if not dry_run:
        print_next(target)


def train_run(run: Run, settings: Settings, address: str | None, *, dry_run: bool = False) -> None:
    """Train a run to its end; what `aalnet train` and `aalnet compare` share."""
    counts = check_data(settings)
    if not dry_run:
        run.claim(settings)
    found = checkpoint.checkpoints(run)
    if found and found[-1].images >= settings.run.images:
        print(f"run `{run.name}` is finished: {found[-1].images:,} images")
        return
    resumed = found[-1].images if found else 0
    alone = settings.run.workers == 0
    if alone or (dry_run and address is None):
        placement = launcher.place_here(settings)
        print_plan(run, settings, placement, counts, resumed)
        if not dry_run:
            with watched(run, settings.run.images):
                launcher.train_here(run, settings, placement)
    else:
        with launcher.connected(settings, address) as placement:
            print_plan(run, settings, placement, counts, resumed)
            if not dry_run:
                with watched(run, settings.run.images):
                    launcher.train_with_ray(run, settings, placement)
    if not dry_run:
        run.store.write(run.key("report.html"), build_report(run).encode())


def check_data(settings: Settings) -> tuple[int, int, int]:
    """Open both data sets before anything is started: training rows, held-out rows, labels."""
    data = settings.data
    train_pairs = Pairs(data.train, data.size_px, data.memory_budget_mib)
    test_pairs = Pairs(data.test, data.size_px, data.memory_budget_mib)
    test_pairs.labels(train_pairs.label_names)
    test_pairs.require_channels(train_pairs.channels)
    return len(train_pairs), len(test_pairs), len(train_pairs.label_names)


def print_plan(
    run: Run,
    settings: Settings,
    placement: Placement,
    counts: tuple[int, int, int],
    resumed: int,
) -> None:
    """What will happen, before it does."""
    where = (
        f"{placement.workers} Ray Train worker{'s' if placement.workers > 1 else ''}"
        if placement.workers
        else "this process, without Ray"
    )
    data, length = settings.data, settings.run
    lines = {
        "run": f"{run.name} ({settings.model}, {settings.network.preset} "
        f"{settings.network.blocks}, {data.size_px} px)",
        "data": f"{counts[0]:,} training and {counts[1]:,} held-out pairs, {counts[2]} labels",
        "workers": f"{where} on {placement.device}, {placement.where}",
        "images": f"{length.images:,} in batches of {data.batch_images}"
        + (f", going on from {resumed:,}" if resumed else ""),
        "checkpoints": f"every {length.checkpoint_every_images:,} images; the last "
        f"{length.keep_last} and the best are kept",
        "storage": run.uri,
    }
    for name, text in lines.items():
        print(f"{name:>12}  {text}")
    sys.stdout.flush()


class watched:
    """Shows the progress of a run while the block trains it."""

    def __init__(self, run: Run, total_images: int) -> None:
        self._run = run
        self._total_images = total_images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._before = len(run.records())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        with ProgressView(self._total_images) as view:
            for record in follow(self._run, from_records=self._before, stop=self._stop):
                view.show(record)


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

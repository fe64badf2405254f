"""`aalnet data pack | inspect`: pictures into a data set, and what a data set holds."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aalnet.errors import ConfigError
from cluster.commands.options import Address, Json
from cluster.view.progress import printable

if TYPE_CHECKING:
    from cluster.data.packer import PackShards
    from cluster.data.packing import ShardPlan

LINE_EVERY_S = 5.0  # plain lines, where there is no terminal
SHOWN = 10  # rejected pairs or problems on the terminal; the files have them all
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Pack and inspect data sets.",
    pretty_exceptions_enable=False,
)  # fmt: skip


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="folder, s3:// prefix, or a list (.csv, .jsonl, .parquet) of the pictures",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        help="folder or s3://bucket/prefix to fill; what this command packed there "
        "before is kept where unchanged",
        metavar="URI",
    ),
]
LayoutName = Annotated[
    Literal["tree", "side-by-side", "list"] | None,
    typer.Option(
        help="how pairs lie in SOURCE; default: as the names say. Give it where they mislead"
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        help="one label for all pairs, where folders are no classes; default: the folder "
        "or the list"
    ),
]
ConditionSide = Annotated[
    Literal["left", "right"],
    typer.Option(help="where the condition stands in a picture that holds both sides"),
]
SizePx = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="resize pictures to so many pixels a side, for smaller shards; default: "
        "files as they are",
    ),
]
TestShare = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="share of the pairs held out as the test split, by a hash of the id; "
        "raising it moves none back",
    ),
]
RowsPerShard = Annotated[
    int,
    typer.Option(
        min=1,
        help="most pairs in a Parquet file; fewer for large pictures, as a file is fetched whole",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="shards packed at a time; 0: one, without Ray, quicker for small sets; "
        "default: one per CPU",
    ),
]


@app.command()
def pack(
    source: Source,
    out: Out,
    layout: LayoutName = None,
    label: Label = None,
    condition_side: ConditionSide = "left",
    size_px: SizePx = None,
    test_share: TestShare = 0.1,
    rows_per_shard: RowsPerShard = 1024,
    workers: Workers = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Pack pictures into Parquet shards under URI/train and URI/test.

    SOURCE holds label/name.condition.png with label/name.target.png, or pictures with both sides,
    or is a CSV, JSONL or Parquet list with the columns id, label, condition, target. The same
    command again goes on, and packs only what has changed. What is left out stands in
    URI/rejected.jsonl.
    """
    from cluster.data import packer

    options = packer.PackOptions(
        source, out, layout, label, condition_side, size_px, test_share, rows_per_shard
    )
    started_s = time.perf_counter()
    with _ProgressBar("pairs", quiet=as_json) as bar:
        done = packer.pack(
            options,
            _runner(workers, address),
            lambda done_pairs, total, rejected: bar.at(done_pairs, total, f"{rejected:,} left out"),
        )
    if as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        _tell_packed(done, out, time.perf_counter() - started_s)


def _runner(workers: int | None, address: str | None) -> PackShards:
    """Packs shards in this process, or with Ray, which takes seconds to start."""
    from cluster.data.packing import pack_shard
    from cluster.storage.store import StoreError

    def run(shards: list[ShardPlan]) -> Iterator[dict[str, Any]]:
        if workers == 0:
            yield from map(pack_shard, shards)
            return
        from cluster.data.ray_data import packed_with_ray

        for manifest in packed_with_ray(shards, workers, address):
            if "error" in manifest:
                raise StoreError(f"{manifest['error']}; the same command goes on")
            yield manifest

    return run


@app.command()
def inspect(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="Parquet file, folder of them, folder with train and test, or s3:// prefix",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="PNG file to write a contact sheet to: four pairs of each of 24 labels"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count labels, sizes and problems of a data set. Exit code 1 if there are problems."""
    from cluster.data.inspection import contact_sheet
    from cluster.data.inspection import inspect as inspected

    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out} must end in .png")
    with _ProgressBar("pairs", quiet=as_json) as bar:
        report = inspected(uri, lambda done_pairs, total: bar.at(done_pairs, total, ""))
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(contact_sheet(report))
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error
    if as_json:
        splits = {name: vars(split) for name, split in report.splits.items()}
        problems = [asdict(problem) for problem in report.problems]
        print(json.dumps({"source": uri, "splits": splits, "problems": problems}, indent=2))
    else:
        _tell_inspected(report, out)
    if report.problems:
        raise typer.Exit(1)


class _ProgressBar:
    """Progress: a bar on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what, self._quiet = what, quiet
        self._next_s = time.monotonic() + LINE_EVERY_S
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
            console=console, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=None, note="")

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def at(self, done_pairs: int, total: int, note: str) -> None:
        self._bar.update(self._task, completed=done_pairs, total=total, note=note)
        if self._bar.disable and not self._quiet and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_EVERY_S
            line = f"{self._what} {done_pairs:,}/{total:,}  {note}".rstrip()
            print(line, file=sys.stderr, flush=True)


def _tell_packed(done: Any, out: str, seconds: float) -> None:
    where = out.rstrip("/")
    lines = {
        "layout": done.layout,
        "pairs": ", ".join(f"{count:,} in {split}" for split, count in done.rows.items()),
        "labels": f"{len(done.labels):,}",
        "shards": f"{done.shards:,}, {done.shards_done_before:,} of them done before",
        "size": f"{done.bytes / 2**20:.1f} MiB",
        "left out": f"{len(done.rejected):,}"
        + (f", see {where}/rejected.jsonl" if done.rejected else ""),
        "time": f"{seconds:.1f} s",
    }
    if done.passed_over:
        lines["passed over"] = f"{done.passed_over:,} other files"
    _print_lines(lines)
    for reason, count in Counter(_kind(one.reason) for one in done.rejected).most_common(SHOWN):
        print(f"{count:>14,}  {printable(reason)}")
    print(f"\nnext:\n  aalnet data inspect {where}")
    split = f"--set data.train={where}/train"
    print(f"  aalnet train CONFIG {split} --set data.test={where}/test")


def _kind(reason: str) -> str:
    """A reason without what differs from pair to pair."""
    words = [word for word in reason.split() if not word.startswith(("`", "/", "s3:"))]
    return " ".join("N" if any(c.isdigit() for c in word) else word for word in words)


def _tell_inspected(report: Any, sheet: Path | None) -> None:
    for name, split in report.splits.items():
        rows = max(split.rows, 1)
        _print_lines({
            name: f"{split.rows:,} pairs, {len(split.labels):,} labels, {split.shards:,} files, "
            f"{split.bytes / 2**20:.1f} MiB",
            "a pair": f"{(split.condition_bytes + split.target_bytes) / rows / 1024:.1f} KiB",
            "sizes": "; ".join(f"{size}: {n:,}" for size, n in split.sizes.most_common(5)),
        })  # fmt: skip
        for label, count in sorted(split.labels.items(), key=lambda item: (-item[1], item[0])):
            print(f"{count:>14,}  {printable(label)}")
    if sheet is not None:
        _print_lines({"contact sheet": os.fspath(sheet)})
    _print_lines({"problems": f"{len(report.problems):,}"})
    for problem in report.problems[:SHOWN]:
        name = f"`{problem.id}`: " if problem.id else ""
        print(f"{'':>14}  {problem.split}, {printable(name + problem.reason)}")
    if len(report.problems) > SHOWN:
        print(f"{'':>14}  and {len(report.problems) - SHOWN:,} more; --json lists all")


def _print_lines(lines: dict[str, str]) -> None:
    for name, text in lines.items():
        print(f"{printable(name):>14}  {printable(text)}")

"""`aalnet runs list | show | watch`: what is in a storage, and how its runs go on."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aalnet.errors import UserError
from aalnet.settings import Settings
from cluster.commands.options import Json, Storage
from cluster.commands.watch import RunName, watch
from cluster.runs.figures import figures, score_of, silence
from cluster.runs.goodput import goodput
from cluster.runs.run import Record, Run, find_run, latest, list_runs, run_status
from cluster.storage.location import open_store
from cluster.view.progress import duration, number, printable, progress_of

DEFAULT_STORAGE = "./aalnet-runs"
PIPED_WIDTH = 200  # a table that nobody looks at is not folded
COLOURS = {"finished": "green", "running": "blue", "failed": "red", "damaged": "red"}
BEST = "best energy score"
COLUMNS = ("run", "model", "status", "images", BEST, "diversity", "age")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List, show, watch and sweep runs.",
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.command("list")
def list_(storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """List the runs of a storage."""
    store = open_store(storage)
    rows = [_summary(run, run.records()) for run in list_runs(store)]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no runs in {store.uri}; start one with: aalnet train CONFIG{_flag(storage)}")
    else:
        _console().print(_table(rows))


@app.command()
def show(name: RunName, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Show one run: settings, figures, checkpoints, files, and what to type next."""
    run, settings = find_run(open_store(storage), name)
    records = run.records()
    facts = _summary(run, records) | _details(run, settings, records)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        for line in _page(run, settings, facts, _flag(storage)):
            print(printable(line))


app.command("watch")(watch)


@app.command()
def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="default: every run of the storage")
    ] = None,
    older_than_h: Annotated[
        float, typer.Option(min=0.0, help="hours since it was written; a live run's are younger")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list it")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Remove what writers that died left behind: blobs of no checkpoint, unfinished uploads."""
    from cluster.runs import retention  # torch, which the other commands go without

    store = open_store(storage)
    runs = list_runs(store) if name is None else [find_run(store, name)[0]]
    blobs = [
        blob for run in runs for blob in retention.sweep(run, 3600 * older_than_h, dry_run=dry_run)
    ]
    for blob in blobs:
        print(printable(f"{store.uri}/{blob.key}"))
    mib = sum(blob.bytes for blob in blobs) / 2**20
    print(f"{'would remove' if dry_run else 'removed'} {len(blobs)} blobs, {mib:.1f} MiB")


def _summary(run: Run, records: Sequence[Record]) -> dict[str, Any]:
    """A row of the list. A run whose run.yaml cannot be read is listed as damaged."""
    first, last = (records[0], records[-1]) if records else ({}, {})
    row: dict[str, Any] = {
        "run": run.name, "model": None, "status": "damaged", "images": last.get("images", 0),
        "total_images": None, "best_energy_score": None, "diversity": None,
        "started_at_s": first.get("time_s"), "logged_at_s": last.get("time_s"),
    }  # fmt: skip
    try:
        settings = run.settings()
    except UserError as error:
        return row | {"error": str(error)}
    if settings is None:
        return row | {"error": "it has no run.yaml"}
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    energies = [score_of(each, "energy_score") for each in evaluations]
    reason = last.get("error") if last.get("kind") == "end" else None
    return row | {
        "model": settings.model,
        "status": run_status(records),
        "total_images": settings.run.images,
        "best_energy_score": min((e for e in energies if e is not None), default=None),
        "diversity": evaluations[-1].get("diversity") if evaluations else None,
        **({"error": reason} if reason else {}),
    }


def _details(run: Run, settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
    samples = run.samples()
    time_use = goodput(records, settings.data.batch_images)
    report, evaluation = run.key("report.html"), latest(records, "evaluation")
    silent = evaluation and silence(evaluation, evaluation["images"], settings.run.images)
    return {
        "uri": run.uri,
        "settings": settings.to_dict(),
        "evaluation": evaluation,
        **({"warning": silent} if silent else {}),
        "goodput": {
            "share": time_use.share,
            "total_s": time_use.total_s,
            "seconds": time_use.seconds,
            "restarts": time_use.restarts,
        },
        "checkpoints": run.checkpoint_images(),
        "last_sample": _uri(run, samples[max(samples)]) if samples else None,
        "report": _uri(run, report) if run.store.keys(report) else None,
    }


def _page(run: Run, settings: Settings, facts: dict[str, Any], flag: str) -> list[str]:
    checkpoints = facts["checkpoints"]
    lines = [
        f"run          {run.name}  ({facts['status']})",
        *([f"error        {facts['error']}"] if facts.get("error") else []),
        *([f"warning      {facts['warning']}"] if "warning" in facts else []),
        f"images       {progress_of(facts['images'], settings.run.images)}",
        *(f"{name:<12} {text}" for name, text in _settings_lines(settings)),
        f"checkpoints  {', '.join(f'{images:,}' for images in checkpoints) or 'none yet'}",
        *_goodput_lines(facts["goodput"]),
        f"last sample  {facts['last_sample'] or 'none yet'}",
        f"report       {facts['report'] or 'none yet'}",
    ]
    if evaluation := facts["evaluation"]:
        at = f"at {evaluation['images']:,} images"
        lines += ["", f"{at:<22}{'this run':>12}{'±':>10}{'condition':>12}"]
        for figure in figures(evaluation):
            verdict = {True: "better", False: "worse", None: ""}[figure.better]
            floor = "-" if figure.floor is None else number(figure.floor)
            error = "" if figure.standard_error is None else number(figure.standard_error)
            cells = f"{number(figure.value):>12}{error:>10}{floor:>12}"
            lines.append(f"  {figure.name:<20}{cells}  {verdict}")
    return [*lines, "", "next:", *(f"  {command}" for command in _next(run, facts, flag))]


def _goodput_lines(time_use: dict[str, Any]) -> list[str]:
    if not time_use["total_s"]:
        return []
    parts = sorted(time_use["seconds"].items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts if seconds >= 0.05)
    total = duration(time_use["total_s"])
    lines = [f"goodput      {time_use['share']:.0%} of {total}: {shares}"]
    if restarts := time_use["restarts"]:
        causes = ", ".join(f"{count} after {cause}" for cause, count in restarts.items())
        lines.append(f"restarts     {causes}")
    return lines


def _settings_lines(settings: Settings) -> list[tuple[str, str]]:
    objective, network, data = settings.objective, settings.network, settings.data
    weights = (
        f", lambda {objective.lambda_}, eta {objective.eta}, beta {objective.beta}, "
        f"gamma {objective.gamma}, flatness {objective.flatness}, K {objective.K}"
    )
    return [
        ("model", settings.model + (weights if settings.model == "aalnet" else "")),
        ("network", f"{network.preset}, {network.blocks}"),
        ("data", f"{data.train} at {data.size_px} px, {data.batch_images} a step"),
        ("seed", str(settings.run.seed)),
    ]


def _next(run: Run, facts: dict[str, Any], flag: str) -> list[str]:
    commands = []
    if facts["status"] == "running":
        commands.append(f"aalnet runs watch {run.name}{flag}")
    elif facts["status"] != "finished":
        commands.append(f"aalnet train CONFIG --run {run.name}{flag}    # goes on from here")
    if facts["checkpoints"]:
        commands.append(f"aalnet sample {run.name} IMAGE --label L -k 8{flag}")
        commands.append(f"aalnet evaluate {run.name}{flag}")
    return commands or [f"aalnet runs watch {run.name}{flag}"]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in COLUMNS:
        right = column in {"images", BEST, "diversity", "age"}
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        total = row["total_images"]
        cells = [
            row["run"],
            row["model"] or "-",
            row["status"],
            progress_of(row["images"], total) if total else "-",
            *(
                "-" if row[key] is None else number(row[key])
                for key in ("best_energy_score", "diversity")
            ),
            _age(row["started_at_s"]),
        ]
        texts = [Text(printable(cell)) for cell in cells]
        texts[2].stylize(COLOURS.get(row["status"], "yellow"))
        table.add_row(*texts)
    return table


def _age(time_s: float | None) -> str:
    return "-" if time_s is None else duration(max(time.time() - time_s, 0.0))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def _uri(run: Run, key: str) -> str:
    return f"{run.store.uri}/{key}"


def _flag(storage: str) -> str:
    return "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"

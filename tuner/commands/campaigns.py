"""`aalnet campaigns`: what campaigns there are, how they stand, what they found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aalnet.errors import ConfigError, UserError
from cluster.commands.options import Json, Storage
from cluster.storage.location import open_store
from cluster.view.progress import duration, number, printable
from tuner.commands.options import DEFAULT_STORAGE, StudyUrl, storage_flag

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.campaign import Campaign
    from tuner.settings import CampaignSettings
    from tuner.status import CampaignStatus

COLOURS = {"finished": "green", "running": "blue", "unreadable": "red"}

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="List, show and report campaigns; print their winners.",
)  # fmt: skip

Name = Annotated[str, typer.Argument(help="name of the campaign", metavar="NAME")]
Number = Annotated[
    int | None, typer.Option("--trial", help="another than the winner", metavar="NUMBER")
]


@app.command("list")
def list_(
    storage: Storage = DEFAULT_STORAGE, study: StudyUrl = None, as_json: Json = False
) -> None:
    """List the campaigns of a storage."""
    from tuner.campaign import Campaign, list_campaigns
    from tuner.table import console

    store = open_store(storage)
    rows = [_summary(Campaign(store, name), study) for name in list_campaigns(store)]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        command = f"aalnet tune CAMPAIGN{storage_flag(storage)}"
        print(f"no campaigns in {store.uri}; start one with: {command}")
    else:
        console().print(_table(rows))
        for row in rows:
            if "error" in row:
                print(printable(f"{row['campaign']}: {row['error']}"))


@app.command()
def show(
    name: Name, storage: Storage = DEFAULT_STORAGE, study: StudyUrl = None, as_json: Json = False
) -> None:
    """Show one campaign: its plan, its trials, why some failed, and what to type next."""
    from tuner.status import by_mean
    from tuner.table import budget_line, console, headline, plan_lines, trials_table

    campaign, settings, status = load(name, storage, study)
    best = by_mean(status.rows, settings)
    if as_json:
        rows = [
            asdict(row) | {"repeats": list(row.repeats.values()), "mean": row.mean}
            for row in status.rows
        ]
        facts = {"winner": best[0].number if best else None, "rows": rows}
        facts = _facts(campaign, status) | facts | {"settings": settings.to_dict()}
        print(json.dumps(facts, indent=2))
        return
    rest = [row for row in status.rows if row.state != "complete"]
    print(
        "\n".join(
            [*plan_lines(campaign, settings), f"{'status':>12}  {standing(campaign, status)}"]
        )
    )
    print(f"\n{printable(headline(status))}\n{budget_line(status)}\n")
    console().print(trials_table([*best, *rest], settings))
    for row in status.rows:
        if row.reason:
            print(printable(f"trial {row.number} failed: {row.reason}"))
    print("\nnext:\n" + "\n".join(f"  {line}" for line in _next(campaign, storage, bool(best))))


@app.command()
def report(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="write it here too", metavar="FILE", dir_okay=False)
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    study: StudyUrl = None,
) -> None:
    """Write a campaign's report.html anew, as its study is now."""
    from tuner.report import write_report

    campaign, settings = find(name, storage, study)
    page = write_report(campaign, settings)
    if out is not None:
        try:
            out.write_bytes(page)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error
    print(f"{campaign.store.uri}/{campaign.key('report.html')}" if out is None else out)


@app.command()
def best(
    name: Name,
    trial: Number = None,
    storage: Storage = DEFAULT_STORAGE,
    study: StudyUrl = None,
    as_json: Json = False,
) -> None:
    """Print run settings that make the winner again: `aalnet train best.yaml`."""
    from tuner.best import best_facts, best_yaml, choose

    campaign, settings, status = load(name, storage, study)
    row = choose(status, settings, trial)
    if as_json:
        print(json.dumps(best_facts(campaign, settings, row), indent=2))
    else:
        print(best_yaml(campaign, settings, row), end="")


@app.command()
def dashboard(
    name: Name,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8080,
    storage: Storage = DEFAULT_STORAGE,
    study: StudyUrl = None,
) -> None:
    """Open optuna-dashboard on a campaign's study, for this machine alone, until Ctrl-C."""
    from cluster.training.stop import Stop
    from tuner.dashboard import dashboard as serve

    campaign, _, _ = load(name, storage, study)
    with Stop() as stop, serve(campaign, port) as address:
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        while stop.by is None:
            time.sleep(0.2)


@app.command()
def schema() -> None:
    """Print the JSON schema of a campaign's file, for editors.

    Save it beside the file and name it in the file's first line:
    `# yaml-language-server: $schema=campaign.schema.json`.
    """
    from tuner.schema import campaign_schema

    print(json.dumps(campaign_schema(), indent=2))


def load(
    name: str, storage: str, study: str | None
) -> tuple[Campaign, CampaignSettings, CampaignStatus]:
    """A campaign that there is, and how it stands. Raises CheckpointError, StudyUnavailable."""
    from tuner.status import load_status

    campaign, settings = find(name, storage, study)
    status, _ = load_status(campaign, settings)
    return campaign, settings, status


def find(name: str, storage: str, study: str | None) -> tuple[Campaign, CampaignSettings]:
    """A campaign that there is, and its settings. Raises CheckpointError."""
    from tuner.campaign import find_campaign

    campaign = find_campaign(open_store(storage), name, study)
    settings = campaign.settings()
    assert settings is not None  # as find_campaign says
    return campaign, settings


def _summary(campaign: Campaign, study: str | None) -> dict[str, Any]:
    """A row of the list; why, where it cannot be read. `study`: of those in a database."""
    from tuner.status import load_status

    try:
        if campaign.study_url() is not None:
            campaign = replace(campaign, study=study)
        campaign.require_study()
        settings = campaign.settings()
        if settings is None:
            raise ConfigError("it has no campaign.yaml")
        status, _ = load_status(campaign, settings)
    except UserError as error:
        return {"campaign": campaign.name, "status": "unreadable", "error": str(error)}
    return _facts(campaign, status)


def _facts(campaign: Campaign, status: CampaignStatus) -> dict[str, Any]:
    report = campaign.key("report.html")
    plain = asdict(status)
    del plain["rows"], plain["suggestions"], plain["suggestion_s"]
    return plain | {
        "status": standing(campaign, status),
        "uri": campaign.uri,
        "report": f"{campaign.store.uri}/{report}" if campaign.store.keys(report) else None,
    }


def standing(campaign: Campaign, status: CampaignStatus) -> str:
    """`finished`, `running`, `stopped`; `held`: by a process elsewhere that may be dead."""
    from cluster.storage.lease import holder_of

    holder = holder_of(campaign.store, campaign.key("lease"))
    alive = False if holder is None else holder.alive()
    if alive is False:
        return "finished" if status.over else "stopped"
    return "running" if alive else "held"


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("campaign", "status", "trials", "pruned", "failed", "best", "spent", "age"):
        is_text = column in {"campaign", "status", "best"}
        table.add_column(column, justify="left" if is_text else "right", no_wrap=is_text)
    for row in rows:
        cells = [row["campaign"], row["status"]]
        if "error" in row:
            cells += ["-"] * 6
        else:
            states = row["states"]
            ended = states["complete"] + states["pruned"] + states["fail"]
            best = ", ".join(f"{name} {number(value)}" for name, value in row["best"].items())
            began = row["began_at_s"]
            age = "-" if began is None else duration(max(time.time() - began, 0.0))
            cells += [f"{ended}/{row['trials']}", str(states["pruned"]), str(states["fail"]),
                      best or "-", duration(row["seconds"]), age]  # fmt: skip
        texts = [Text(printable(cell)) for cell in cells]
        texts[1].stylize(COLOURS.get(row["status"], "yellow"))
        table.add_row(*texts)
    return table


def _next(campaign: Campaign, storage: str, has_winner: bool) -> list[str]:
    flag = storage_flag(storage)
    report = f"aalnet campaigns report {campaign.name} --out report.html{flag}"
    if not has_winner:
        return [report]
    return [
        report,
        f"aalnet campaigns best {campaign.name}{flag} > best.yaml",
        f"aalnet train best.yaml{flag}",
    ]

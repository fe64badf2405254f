"""`aalnet tune`: check, show the plan, run the campaign, report."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aalnet.errors import CheckpointError
from cluster.commands.options import Address, Set, Storage
from cluster.storage.location import open_store
from cluster.training.stop import Stop, Stopped
from tuner.commands.options import DEFAULT_STORAGE, StudyUrl, storage_flag

if TYPE_CHECKING:
    from tuner.campaign import Campaign
    from tuner.capacity import Slots
    from tuner.settings import CampaignSettings
    from tuner.status import CampaignStatus, StatusCallback

app = typer.Typer(add_completion=False)


@app.command()
def tune(
    campaign: Annotated[str, typer.Argument(help="campaign file (YAML)", metavar="CAMPAIGN")],
    overrides: Set = None,
    name: Annotated[str | None, typer.Option(help="its name; default: the file's")] = None,
    storage: Storage = DEFAULT_STORAGE,
    study: StudyUrl = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the plan")] = False,
) -> None:
    """Search settings in a campaign. The same command again goes on where it was."""
    from cluster.commands.train import check_data
    from cluster.storage.fenced import leased
    from tuner.campaign import Campaign
    from tuner.settings import load_campaign
    from tuner.table import plan_lines

    settings = load_campaign(campaign, overrides or [])
    target = Campaign(open_store(storage), Path(campaign).stem if name is None else name, study)
    check_data(settings.run_settings({}))
    if dry_run:
        print("\n".join(plan_lines(target, settings)))
        return
    with Stop() as stop:
        what = f"campaign `{target.name}`"
        with leased(target.store, target.key("lease"), what, stop.now) as store:
            _run(Campaign(store, target.name, study), settings, address, stop)
    _print_next(target, storage)
    if stop.by is not None:
        print(f"campaign `{target.name}` is stopped; the same command goes on from there")
        raise Stopped(stop.exit_code)


def _run(campaign: Campaign, settings: CampaignSettings, address: str | None, stop: Stop) -> None:
    """Run a campaign whose lease this process holds, and write its report however that ends."""
    from tuner.driver import connected, run_campaign
    from tuner.report import write_report
    from tuner.table import plan_lines
    from tuner.telemetry import exported

    campaign.claim(settings)
    if _is_over(campaign, settings):
        write_report(campaign, settings)
        print(f"campaign `{campaign.name}` is finished; a larger budget.trials would go on with it")
        return
    with connected(settings, address) as slots:
        plan = [*plan_lines(campaign, settings), f"{'at once':>12}  {_slots_text(slots)}"]
        print("\n".join(plan), flush=True)
        telemetry = settings.run_settings({}).telemetry
        view, show = _view(campaign.name, settings)
        try:
            with view, exported(campaign.name, telemetry, show) as show_and_export:
                status = run_campaign(campaign, settings, slots, stop, show_and_export)
        finally:
            write_report(campaign, settings)
    _require_result(status)


def _view(
    name: str, settings: CampaignSettings
) -> tuple[AbstractContextManager[Any], StatusCallback]:
    """On a terminal the page of `aalnet watch --campaign`, elsewhere lines; and how it is fed."""
    from tuner.screen import CampaignScreen
    from tuner.table import CampaignLines

    if not sys.stdout.isatty():
        lines = CampaignLines(settings)
        return lines, lines.show
    screen = CampaignScreen(name)

    def show(status: CampaignStatus) -> None:
        screen.show(status, settings, "finished" if status.over else "running")

    return screen, show


def _is_over(campaign: Campaign, settings: CampaignSettings) -> bool:
    """Is nothing left to do? Of a campaign that has no study yet, all is."""
    from tuner.status import load_status

    try:
        status, _ = load_status(campaign, settings)
    except CheckpointError:
        return False
    return status.over


def _require_result(status: CampaignStatus) -> None:
    """Raises TooManyFailures where trials failed and none is complete."""
    from tuner.study import TooManyFailures

    failed = [row for row in status.rows if row.state == "fail"]
    if status.over and failed and not status.states["complete"]:
        raise TooManyFailures(
            f"no trial of campaign `{status.campaign}` is complete: {len(failed)} failed, the last "
            f"with: {failed[-1].reason}; mend it and choose another --name"
        )


def _slots_text(slots: Slots) -> str:
    each = f"{slots.workers} Ray Train workers" if slots.workers > 1 else "one process"
    trials = f"{slots.at_once} trial{'s' * (slots.at_once > 1)}"
    return f"{trials}, each {each} on {slots.device}, {slots.where}"


def _print_next(campaign: Campaign, storage: str) -> None:
    flag = storage_flag(storage)
    print(f"\nreport      {campaign.uri}/report.html")
    print(f"next        aalnet campaigns show {campaign.name}{flag}")
    print(f"            aalnet campaigns best {campaign.name}{flag} > best.yaml")

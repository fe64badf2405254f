"""`aalnet tune`: check, show the plan, run the campaign, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aalnet.errors import CheckpointError
from cluster.commands.options import Address, Set, Storage
from cluster.storage.location import open_store
from cluster.training.stop import Stop, Stopped
from tuner.commands.options import Study

if TYPE_CHECKING:
    from tuner.campaign import Campaign
    from tuner.capacity import Slots
    from tuner.settings import CampaignSettings
    from tuner.status import CampaignStatus

app = typer.Typer(add_completion=False)


@app.command()
def tune(
    campaign: Annotated[str, typer.Argument(help="campaign file (YAML)", metavar="CAMPAIGN")],
    overrides: Set = None,
    name: Annotated[str | None, typer.Option(help="its name; default: the file's")] = None,
    storage: Storage = "./aalnet-runs",
    study: Study = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the plan")] = False,
) -> None:
    """Search settings in a campaign. The same command again goes on where it was."""
    from cluster.commands.train import check_data
    from cluster.storage.fenced import leased
    from tuner.campaign import Campaign
    from tuner.settings import load_campaign
    from tuner.table import plan

    settings = load_campaign(campaign, overrides or [])
    found = Campaign(open_store(storage), Path(campaign).stem if name is None else name, study)
    check_data(settings.run_settings({}))
    if dry_run:
        print("\n".join(plan(found, settings)))
        return
    with Stop() as stop:
        what = f"campaign `{found.name}`"
        with leased(found.store, found.key("lease"), what, stop.now) as store:
            _run(Campaign(store, found.name, study), settings, address, stop)
    _print_next(found, storage)
    if stop.by is not None:
        print(f"campaign `{found.name}` is stopped; the same command goes on from there")
        raise Stopped(stop.exit_code)


def _run(campaign: Campaign, settings: CampaignSettings, address: str | None, stop: Stop) -> None:
    """Run a campaign whose lease this process holds, and write its report however that ends."""
    from tuner.driver import connected, run_campaign
    from tuner.report import write_report
    from tuner.table import CampaignView, plan
    from tuner.telemetry import exported

    campaign.claim(settings)
    if _is_over(campaign, settings):
        write_report(campaign, settings)
        print(f"campaign `{campaign.name}` is finished; a larger budget.trials would go on with it")
        return
    with connected(settings, address) as place:
        print("\n".join([*plan(campaign, settings), f"{'at once':>12}  {_slots(place)}"]))
        sys.stdout.flush()
        telemetry = settings.run_settings({}).telemetry
        try:
            with (
                CampaignView(settings) as view,
                exported(campaign.name, telemetry, view.show) as show,
            ):
                status = run_campaign(campaign, settings, place, stop, show)
        finally:
            write_report(campaign, settings)
    _require_result(status)


def _is_over(campaign: Campaign, settings: CampaignSettings) -> bool:
    """Is nothing left to do? Of a campaign that has no study yet, all is."""
    from tuner.report import load_status

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


def _slots(place: Slots) -> str:
    each = f"{place.workers} Ray Train workers" if place.workers > 1 else "one process"
    trials = f"{place.at_once} trial{'s' * (place.at_once > 1)}"
    return f"{trials}, each {each} on {place.device}, {place.where}"


def _print_next(campaign: Campaign, storage: str) -> None:
    flag = "" if storage == "./aalnet-runs" else f" --storage {shlex.quote(storage)}"
    print(f"\nreport      {campaign.uri}/report.html")
    print(f"next        aalnet campaigns show {campaign.name}{flag}")
    print(f"            aalnet campaigns best {campaign.name}{flag} > best.yaml")

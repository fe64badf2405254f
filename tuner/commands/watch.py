"""`aalnet watch RUN`, `aalnet watch --campaign NAME`: how a run or a campaign goes on."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from aalnet.errors import ConfigError
from cluster.commands.options import Storage
from cluster.commands.watch import watch as watch_run
from tuner.commands.options import StudyUrl

POLL_S = 2.0

app = typer.Typer(add_completion=False)


@app.command()
def watch(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="a name from `aalnet runs list`")
    ] = None,
    campaign: Annotated[
        str | None,
        typer.Option("--campaign", metavar="NAME", help="a name from `aalnet campaigns list`"),
    ] = None,
    storage: Storage = "./aalnet-runs",
    study: StudyUrl = None,
) -> None:
    """Show how a run, or a campaign, goes on, until it ends. Exit code 1 if a run failed.

    On a terminal a page of figures with sparklines, elsewhere plain lines.
    """
    if (run is None) == (campaign is None):
        raise ConfigError("aalnet watch takes a run, or --campaign NAME, and not both")
    if run is not None:
        watch_run(run, storage)
    else:
        _watch_study(str(campaign), storage, study)


def _watch_study(name: str, storage: str, study: str | None) -> None:
    """Look at a campaign's study now and then, until nothing is left to do."""
    from cluster.storage.store import StoreError
    from tuner.campaign import StudyUnavailable
    from tuner.commands.campaigns import find, standing
    from tuner.screen import CampaignScreen
    from tuner.status import current_status, load_status
    from tuner.table import CampaignLines

    campaign, settings = find(name, storage, study)
    status, opened = load_status(campaign, settings)
    state = standing(campaign, status)
    if state in {"stopped", "held"}:
        print(f"campaign `{name}` is not running here; Ctrl-C leaves", file=sys.stderr)
    live = sys.stdout.isatty()
    with CampaignScreen(name) if live else CampaignLines(settings) as view:
        while True:
            if isinstance(view, CampaignScreen):
                view.show(status, settings, state)
            else:
                view.show(status)
            if state == "finished":
                return
            time.sleep(POLL_S)
            try:
                status = current_status(campaign, campaign.settings() or settings, opened)
                state = standing(campaign, status)
            except (StoreError, StudyUnavailable):
                state = "the storage does not answer"

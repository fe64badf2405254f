"""`aalnet watch RUN`, `aalnet watch --campaign NAME`: how a run or a campaign goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Self

import typer

from aalnet.errors import ConfigError
from cluster.commands.options import Storage
from cluster.commands.watch import LINE_EVERY_S, Url
from cluster.commands.watch import watch as watch_run
from cluster.view.screen import History, figures_of
from tuner.commands.options import StudyUrl

if TYPE_CHECKING:
    from cluster.view.scrape import Sample

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
    url: Url = None,
) -> None:
    """Show how a run, or a campaign, goes on, until it ends. Exit code 1 if a run failed.

    On a terminal a page of figures with sparklines, elsewhere plain lines.
    """
    if (run is None) == (campaign is None):
        raise ConfigError("aalnet watch takes a run, or --campaign NAME, and not both")
    if run is not None:
        watch_run(run, storage, url)
    elif url is not None:
        _watch_address(str(campaign), url)
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
    stands = standing(campaign, status)
    if stands in {"stopped", "held"}:
        print(f"campaign `{name}` is not running here; Ctrl-C leaves", file=sys.stderr)
    live = sys.stdout.isatty()
    with CampaignScreen(name) if live else CampaignLines(settings) as view:
        while True:
            if isinstance(view, CampaignScreen):
                view.show(status, settings, stands)
            else:
                view.show(status)
            if stands == "finished":
                return
            time.sleep(POLL_S)
            try:
                status = current_status(campaign, campaign.settings() or settings, opened)
                stands = standing(campaign, status)
            except (StoreError, StudyUnavailable):
                stands = "the storage does not answer"


def _watch_address(name: str, url: str) -> None:
    """Scrape a campaign's address again and again, until it ends with its last trial."""
    from cluster.view.scrape import AddressGone, looks
    from tuner.screen import CampaignScreen, ended_of

    found = looks("campaign", name, url)
    look = next(found)  # before the screen: a mistake is told in a line
    live = sys.stdout.isatty()
    with CampaignScreen(name) if live else _Lines() as view:
        try:
            view.take(look.samples, "running")
            for look in found:
                view.take(look.samples, "running")
        except AddressGone:
            wanted = view.history.get("aalnet_campaign_target_trials") or 0
            if ended_of(view.history) < wanted:
                raise


class _Lines:
    """A scraped campaign in plain lines: one for every change, and one now and then."""

    def __init__(self) -> None:
        self.history, self._told, self._next_s = History(), "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def take(self, samples: Iterable[Sample], status: str) -> None:
        from tuner.screen import headline_of

        self.history.add(figures_of(samples))
        text, now_s = f"{status}  {headline_of(self.history)}", time.monotonic()
        if text != self._told or now_s >= self._next_s:
            self._told, self._next_s = text, now_s + LINE_EVERY_S
            print(text, flush=True)

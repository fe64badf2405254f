"""A campaign's metrics, served by its driver: what its table shows, for Prometheus."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from aalnet.settings import TelemetrySettings
from cluster.telemetry.exporter import Exporter, Snapshot
from cluster.telemetry.tally import Tally
from tuner.status import CampaignStatus

Show = Callable[[CampaignStatus], None]


class CampaignExport:
    """Holds the last status as metrics; `read` is what a scrape sees."""

    def __init__(self, campaign: str) -> None:
        self._campaign, self._lock = campaign, threading.Lock()
        self._snapshot: dict[str, Any] = {"values": [], "spreads": []}

    def take(self, status: CampaignStatus) -> None:
        """Keep a campaign's status in place of the one before."""
        found = snapshot_of(status)
        with self._lock:
            self._snapshot = found

    def read(self) -> list[Snapshot]:
        """The last status."""
        with self._lock:
            return [self._snapshot]


def snapshot_of(status: CampaignStatus) -> dict[str, Any]:
    """A status as metrics; what is not known yet is left out."""
    tally = Tally(campaign=status.campaign)
    for state, count in status.states.items():
        tally.set("aalnet_campaign_trials", count, state=state)
    for objective, value in status.best.items():
        tally.set("aalnet_campaign_best_value", value, objective=objective)
    for name, number in {
        "aalnet_campaign_target_trials": status.trials,
        "aalnet_campaign_pruned_ratio": status.pruned_share,
        "aalnet_campaign_spent_seconds": status.seconds,
        "aalnet_campaign_budget_seconds": status.budget_s,
        "aalnet_campaign_images_total": status.images,
        "aalnet_campaign_gpu_seconds_total": status.gpu_seconds,
        "aalnet_campaign_start_timestamp_seconds": status.began_at_s,
        "aalnet_campaign_last_progress_timestamp_seconds": status.progress_at_s,
    }.items():
        if number is not None:
            tally.set(name, number)
    suggesting = [[status.suggestions], status.suggestion_s]
    spread = ["aalnet_campaign_suggestion_seconds", [status.campaign], *suggesting]
    return {"values": tally.snapshot()["values"], "spreads": [spread]}


@contextlib.contextmanager
def exported(campaign: str, telemetry: TelemetrySettings, show: Show) -> Iterator[Show]:
    """Serve a campaign's metrics; gives a `show` that takes them in besides."""
    export = CampaignExport(campaign)

    def both(status: CampaignStatus) -> None:
        export.take(status)
        show(status)

    with Exporter(f"campaign/{campaign}", telemetry, export.read):
        yield both

"""`aalnet watch --campaign`: a campaign on a terminal, from its study."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.text import Text

from cluster.view.progress import duration, number
from cluster.view.screen import BLANK, WIDE, Row, Screen, bar, page, table
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus
from tuner.table import best_and_running, trials_table


class CampaignScreen(Screen):
    """Shows a campaign while it is entered, by the status of its study."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        super().__init__("running", console)
        self._name = name
        self._campaign: CampaignStatus | None = None
        self._trials: RenderableType | None = None

    def show(self, campaign: CampaignStatus, settings: CampaignSettings, status: str) -> None:
        """Take in the values of now, and the trials."""
        if self._campaign is None:
            for best in best_so_far(campaign, settings):
                self.take({(name, ()): value for name, value in best.items()}, status)
        values = {**campaign.best, **campaign.states, "images": campaign.images}
        self.take({(name, ()): value for name, value in values.items()}, status)
        trials = best_and_running(campaign, settings)
        with self._lock:
            self._campaign = campaign
            if trials:
                wide = self.console.width >= WIDE
                self._trials = trials_table(trials, settings, params=wide)

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        with self._lock:
            parts: list[RenderableType] = []
            if self._campaign is not None:
                rows = [*self._results(self._campaign), BLANK, *self._costs(self._campaign)]
                parts = [_progress(self._campaign), Text(), table(rows)]
            if self._trials is not None:
                parts += [Text(), self._trials]
            return page(f"campaign {self._name}", self.status, parts)

    def _results(self, campaign: CampaignStatus) -> list[Row]:
        """The best values, and what became of the trials."""
        best = [
            (f"best {name}", number(value), self.history.sparkline(name), "")
            for name, value in campaign.best.items()
        ]
        notes = {"pruned": f"{campaign.pruned_share:.0%} of those ended"}
        trials = [
            (state, f"{count}", self.history.sparkline(state), notes.get(state, "") * bool(count))
            for state, count in campaign.states.items()
        ]
        return [*(best or [("no trial complete yet", "", "", "")]), *trials]

    def _costs(self, campaign: CampaignStatus) -> list[Row]:
        """Time, images and GPUs; when there was news."""
        limit = f"of {duration(campaign.budget_s)}" if campaign.budget_s else ""
        rows: list[Row] = [
            ("spent", duration(campaign.seconds), "", limit),
            ("images", f"{campaign.images:,.0f}", self.history.sparkline("images"), ""),
        ]
        if campaign.gpu_seconds:
            rows.append(("GPU time", duration(campaign.gpu_seconds), "", ""))
        if campaign.progress_at_s:
            ago_s = max(time.time() - campaign.progress_at_s, 0.0)
            rows.append(("last news", f"{duration(ago_s)} ago", "", ""))
        return rows


def best_so_far(status: CampaignStatus, settings: CampaignSettings) -> Iterable[dict[str, float]]:
    """The best values there were, after one complete trial and the next."""
    best: dict[str, float] = {}
    for row in status.rows:
        if row.state != "complete":
            continue
        for objective, value in zip(settings.objectives, row.values, strict=False):
            before = best.get(objective.figure, value)
            best[objective.figure] = objective.best([value, before])
        yield dict(best)


def _progress(campaign: CampaignStatus) -> Text:
    ended, total = campaign.ended, campaign.trials
    share = min(ended / total, 1.0) if total else 0.0
    parts = [f"  {share:.0%}"]
    if campaign.repeats_wanted:
        parts.append(f"  repeats {campaign.repeats_made}/{campaign.repeats_wanted}")
    if campaign.eta_s:
        parts.append(f"  {duration(campaign.eta_s)} left")
    return Text.assemble(f"trials {ended}/{total}  ", bar(share), *parts)

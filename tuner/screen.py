"""`aalnet watch --campaign`: a campaign's metrics on a terminal, from its study or a scrape."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.text import Text

from cluster.view.progress import duration, number
from cluster.view.scrape import Sample, samples_of
from cluster.view.screen import GAP, LINE, WIDE, History, Line, Screen, page, rows
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus
from tuner.table import best_and_running, trials_table
from tuner.telemetry import snapshot_of

BEST, TRIALS = "aalnet_campaign_best_value", "aalnet_campaign_trials"
ENDED = ("complete", "pruned", "fail")


class CampaignScreen(Screen):
    """Shows a campaign while it is entered: `show` takes a study's status, `take` a scrape."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        super().__init__("running", console)
        self._name = name
        self._trials: RenderableType | None = None
        self._left = ""

    def show(self, found: CampaignStatus, settings: CampaignSettings, status: str) -> None:
        """Take in what the study tells: the values of now, and the trials."""
        if not self.history.now:
            for values in best_so_far(found, settings):
                self.take(values, status)
        self.take(samples_of(snapshot_of(found)), status)
        shown = best_and_running(found, settings)
        wide = self.console.width >= WIDE
        with self._lock:
            if shown:
                self._trials = trials_table(shown, settings, params=wide)
            self._left = _left(found)

    def page(self) -> RenderableType:
        """The whole screen, as of now."""
        with self._lock:
            lines = [*_found(self.history), GAP, *_spent(self.history)]
            trials = [] if self._trials is None else [Text(), self._trials]
            head = [_progress(self.history, self._left), Text()]
            return page(f"campaign {self._name}", self.status, [*head, rows(lines), *trials])


def best_so_far(status: CampaignStatus, settings: CampaignSettings) -> Iterable[list[Sample]]:
    """The best values there were, after one complete trial and the next."""
    best: dict[str, float] = {}
    for row in status.rows:
        if row.state != "complete":
            continue
        for objective, value in zip(settings.objectives, row.values, strict=False):
            before = best.get(objective.figure, value)
            best[objective.figure] = objective.best([value, before])
        yield [(BEST, {"objective": figure}, value) for figure, value in best.items()]


def headline_of(history: History) -> str:
    """How far it is, in a line."""
    states = history.by(TRIALS, "state")
    total = history.get("aalnet_campaign_target_trials") or 0
    told = ", ".join(f"{count:.0f} {state}" for state, count in states.items() if count)
    best = [f"best {name} {number(value)}" for name, value in history.by(BEST, "objective").items()]
    return "  ".join([f"trials {ended_of(history):.0f}/{total:.0f}", told, *best]).strip()


def ended_of(history: History) -> float:
    """Trials that are over, however they ended."""
    states = history.by(TRIALS, "state")
    return sum(states.get(state, 0) for state in ENDED)


def _left(status: CampaignStatus) -> str:
    """What only the study tells: repeats, and how long it will take."""
    repeats = f"  repeats {status.repeats_made}/{status.repeats_wanted}" * bool(
        status.repeats_wanted
    )
    return repeats + (f"  {duration(status.eta_s)} left" if status.eta_s else "")


def _progress(history: History, left: str) -> Text:
    ended = ended_of(history)
    total = history.get("aalnet_campaign_target_trials") or 0
    share = min(ended / total, 1.0) if total else 0.0
    full = round(share * LINE)
    bar = Text.assemble(("━" * full, "green"), ("━" * (LINE - full), "dim"))
    return Text.assemble(f"trials {ended:.0f}/{total:.0f}  ", bar, f"  {share:.0%}", left)


def _found(history: History) -> list[Line]:
    """The best values, and what became of the trials."""
    best = [
        (f"best {name}", number(value), history.line(BEST, LINE, objective=name), "")
        for name, value in history.by(BEST, "objective").items()
    ]
    ratio = history.get("aalnet_campaign_pruned_ratio")
    trials = [
        (state, f"{count:.0f}", history.line(TRIALS, LINE, state=state),
         f"{ratio:.0%} of those ended" if state == "pruned" and ratio else "")
        for state, count in history.by(TRIALS, "state").items()
    ]  # fmt: skip
    return [*(best or [("no trial complete yet", "", "", "")]), *trials]


def _spent(history: History) -> list[Line]:
    """Time, images and GPUs; how long a suggestion takes; when there was news."""

    def seconds(name: str) -> str:
        value = history.get(f"aalnet_campaign_{name}")
        return "-" if value is None else duration(value)

    budget = history.get("aalnet_campaign_budget_seconds")
    images = history.get("aalnet_campaign_images_total") or 0
    lines: list[Line] = [
        ("spent", seconds("spent_seconds"), "", f"of {duration(budget)}" if budget else ""),
        ("images", f"{images:,.0f}", history.line("aalnet_campaign_images_total", LINE), ""),
    ]
    if history.get("aalnet_campaign_gpu_seconds_total"):
        lines.append(("GPU time", seconds("gpu_seconds_total"), "", ""))
    if count := history.get("aalnet_campaign_suggestion_seconds_count"):
        each_s = (history.get("aalnet_campaign_suggestion_seconds_sum") or 0.0) / count
        lines.append(("a suggestion", f"{number(1e3 * each_s)} ms", "", f"mean of {count:.0f}"))
    if at_s := history.get("aalnet_campaign_last_progress_timestamp_seconds"):
        lines.append(("last news", f"{duration(max(time.time() - at_s, 0.0))} ago", "", ""))
    return lines

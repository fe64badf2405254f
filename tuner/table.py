"""A campaign in text: its plan, its progress in lines, a table of its trials."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.view.progress import duration, number, printable
from tuner.campaign import Campaign
from tuner.settings import CampaignSettings
from tuner.space import Choices, Range
from tuner.status import CampaignStatus, TrialRow, by_mean

COLOURS = {"complete": "green", "running": "blue", "pruned": "yellow", "fail": "red"}
SHOWN = 8  # best trials of a campaign that goes on
PIPED_WIDTH = 200


def plan_lines(campaign: Campaign, settings: CampaignSettings) -> list[str]:
    """What a campaign is to do, a line for each part of it."""
    budget, repeats = settings.budget, settings.repeats
    limit = f", none starts after {budget.seconds:,.0f} s" if budget.seconds else ""
    several = repeats.top and repeats.seeds and len(settings.objectives) == 1
    seeds = ", ".join(map(str, repeats.seeds))
    lines = {
        "campaign": campaign.name,
        "search": ", ".join(f"{key} ({_ends(each)})" for key, each in settings.space.items()),
        "objective": ", ".join(f"{each.direction} {each.figure}" for each in settings.objectives),
        "trials": f"{budget.trials} of {budget.images:,} images{limit}; {settings.sampler.kind}",
        "pruning": _pruning(settings),
        "repeats": f"the best {repeats.top} with seeds {seeds}" if several else "none",
        "storage": campaign.uri,
    }
    return [f"{name:>12}  {text}" for name, text in lines.items()]


def _ends(dimension: Range | Choices) -> str:
    if isinstance(dimension, Choices):
        return " | ".join(str(choice) for choice in dimension.choices)
    return f"{dimension.low:g} to {dimension.high:g}{', log' if dimension.log else ''}"


def _pruning(settings: CampaignSettings) -> str:
    rules = settings.pruning
    if rules.kind == "none":
        return "none"
    rungs = f"the first rung at {settings.first_rung_images:,} images"
    if rules.kind == "median":
        return f"median, {rungs}"
    return f"asha, {rungs}; the best 1/{rules.reduction} of each go on"


class CampaignLines(contextlib.AbstractContextManager["CampaignLines"]):
    """Prints a campaign as it goes on: a line whenever a trial's state changes."""

    def __init__(self, settings: CampaignSettings) -> None:
        self._settings = settings
        self._states: dict[int, str] = {}  # as they were printed last, by trial
        self._repeats = 0

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def show(self, status: CampaignStatus) -> None:
        """Print what is new since the status before."""
        news = [
            row for row in status.rows
            if row.state != "waiting" and self._states.get(row.number) != row.state
        ]  # fmt: skip
        for row in news:
            self._states[row.number] = row.state
            print(printable(trial_line(row, self._settings)), flush=True)
        if any(row.state != "running" for row in news):
            print(headline(status), flush=True)
        if status.repeats_made > self._repeats:
            self._repeats = status.repeats_made
            print(f"repeats {status.repeats_made} of {status.repeats_wanted}", flush=True)


def console() -> Console:
    """For tables on standard output; one that nobody looks at is not folded."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def best_and_running(status: CampaignStatus, settings: CampaignSettings) -> list[TrialRow]:
    """The trials that are shown of a campaign that goes on."""
    running = [row for row in status.rows if row.state == "running"]
    return [*by_mean(status.rows, settings)[:SHOWN], *running]


def headline(status: CampaignStatus) -> str:
    """How far the campaign is: trials by state, the best values, the time to the end."""
    states = ", ".join(f"{count} {state}" for state, count in status.states.items() if count)
    best = ", ".join(f"best {name} {number(value)}" for name, value in status.best.items())
    repeats = (
        f", repeats {status.repeats_made}/{status.repeats_wanted}" if status.repeats_made else ""
    )
    eta = f", {duration(status.eta_s)} left" if status.eta_s else ""
    parts = [f"{status.ended}/{status.trials} trials", states, best]
    return " · ".join(part for part in parts if part) + repeats + eta


def budget_line(status: CampaignStatus) -> str:
    """Time, images and GPU time spent, of the budget."""
    of = f" of {duration(status.budget_s)}" if status.budget_s else ""
    gpus = f", {duration(status.gpu_seconds)} of GPUs" if status.gpu_seconds else ""
    return f"spent {duration(status.seconds)}{of}, {status.images:,} images{gpus}"


def trial_line(row: TrialRow, settings: CampaignSettings) -> str:
    """One trial in one line."""
    params = ", ".join(f"{short(key)} {value_text(value)}" for key, value in row.params.items())
    values = ", ".join(
        f"{objective.figure} {number(value)}"
        for objective, value in zip(settings.objectives, row.values, strict=False)
    )
    at = f" at {row.images:,} images" if row.images else ""
    why = f": {row.reason}" if row.reason else ""
    return (
        f"trial {row.number:>3} {row.state:<9} {params}{f' -> {values}' if values else ''}{at}{why}"
    )


def trials_table(
    rows: Sequence[TrialRow], settings: CampaignSettings, *, params: bool = True
) -> Table:
    """Trials with their values, their mean over (so many) seeds, and where `params` says so their
    parameters."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    figures = [objective.figure for objective in settings.objectives]
    keys = list(settings.space) if params else []
    names = [short(key) for key in keys]
    with_mean = any(row.repeats for row in rows)
    for head in ["trial", "state", *figures, *["mean"] * with_mean, *names, "images", "time"]:
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    for row in rows:
        values = [number(value) for value in row.values] + ["-"] * (len(figures) - len(row.values))
        seeds = len(row.repeats) + 1
        mean = f"{number(row.mean)} ({seeds})" if row.repeats and row.mean is not None else "-"
        params_text = [value_text(row.params.get(key)) for key in keys]
        cells = [str(row.number), row.state, *values, *[mean] * with_mean, *params_text,
                 f"{row.images:,}", duration(row.seconds)]  # fmt: skip
        texts = [Text(printable(cell)) for cell in cells]
        texts[1].stylize(COLOURS.get(row.state, ""))
        table.add_row(*texts)
    return table


def short(key: str) -> str:
    """`objective.eta` -> `eta`."""
    return key.rpartition(".")[2]


def value_text(value: Any) -> str:
    """A value of a setting, short."""
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)

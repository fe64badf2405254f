"""report.html of a campaign: one file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import cluster.view.report
from cluster.runs.run import Run
from cluster.view.progress import duration, number
from tuner.best import best_yaml
from tuner.campaign import Campaign
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus, RepeatResults, TrialRow, by_mean, load_status, repeats_of
from tuner.table import short, value_text

GRIDS = 4  # of the best trials


@dataclass(frozen=True)
class CostRow:
    """What the trials of one kind took."""

    kind: str
    trials: int
    images: int
    seconds: float


def write_report(campaign: Campaign, settings: CampaignSettings) -> bytes:
    """Write report.html, and best.yaml where there is a winner; gives the page.

    Raises:
        CheckpointError: there is no study.  StudyUnavailable: its database fails.
    """
    status, study = load_status(campaign, settings)
    best = by_mean(status.rows, settings)
    text = best_yaml(campaign, settings, best[0]) if best else ""
    page = _page(campaign, settings, status, study, best, text).encode()
    campaign.store.write(campaign.key("report.html"), page)
    if best:
        campaign.store.write(campaign.key("best.yaml"), text.encode())
    return page


def _page(
    campaign: Campaign, settings: CampaignSettings, status: CampaignStatus, study: optuna.Study,
    best: list[TrialRow], best_text: str,
) -> str:  # fmt: skip
    """The report as one HTML page."""
    from plotly.offline import get_plotlyjs  # a second of imports, which a status goes without

    from tuner.plots import draw_plots

    folders = [
        Path(module).parent / "templates" for module in (__file__, cluster.view.report.__file__)
    ]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "duration": duration, "short": short, "value_text": value_text,
        "deviation": statistics.stdev,
    }  # fmt: skip
    seed = settings.run_settings({}).run.seed
    plots = draw_plots(study, settings)
    pruned = [row for row in status.rows if row.state == "pruned"]
    return environment.get_template("campaign.html.j2").render(
        campaign=campaign,
        settings=settings,
        status=status,
        best=best[0] if best else None,
        best_yaml=best_text,
        rows=[*best, *(row for row in status.rows if row.state != "complete")],
        grids=[(row, grid) for row in best[:GRIDS] if (grid := last_grid(campaign, row))],
        failures=[row for row in status.rows if row.state == "fail"],
        repeated=[(row, {seed: row.values[0]} | row.repeats) for row in best if row.repeats],
        costs=costs(status, repeats_of(study.user_attrs)),
        spared=sum(settings.budget.images - row.images for row in pruned),
        plots=plots,
        plotly=Markup(get_plotlyjs()) if plots else "",
        settings_yaml=yaml.safe_dump(settings.to_dict(), sort_keys=False),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def costs(status: CampaignStatus, repeats: RepeatResults) -> list[CostRow]:
    """Where the work went: by how trials ended, and repeats."""
    costs = []
    for state in ("complete", "pruned", "fail", "running"):
        rows = [row for row in status.rows if row.state == state]
        images, seconds = sum(row.images for row in rows), sum(row.seconds for row in rows)
        costs.append(CostRow(state, len(rows), images, seconds))
    each = [result.get("cost", {}) for result in repeats.values()]
    images = sum(cost.get("images", 0) for cost in each)
    seconds = sum(cost.get("seconds", 0.0) for cost in each)
    costs.append(CostRow("repeats", len(each), images, seconds))
    return [row for row in costs if row.trials]


def last_grid(campaign: Campaign, row: TrialRow) -> str | None:
    """The last sample grid of a trial's run, as a data URL."""
    grids = Run(campaign.store, row.run).samples() if row.run else {}
    if not grids:
        return None
    data = campaign.store.read(grids[max(grids)])
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"

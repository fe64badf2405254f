"""report.html of a campaign: one file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import cluster.view.report
from aalnet.errors import CheckpointError
from cluster.runs.run import Run
from cluster.view.progress import duration, number
from tuner.best import best_yaml, winner
from tuner.campaign import Campaign, database_errors
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus, TrialRow, build_status, by_mean, repeats_of
from tuner.table import short, told

GRIDS = 4  # of the best trials


@dataclass(frozen=True)
class Repeated:
    """A trial with all its seeds."""

    trial: int
    values: dict[int, float]  # by seed
    mean: float
    deviation: float


@dataclass(frozen=True)
class Share:
    """What the trials of one kind took."""

    kind: str
    trials: int
    images: int
    seconds: float


def load_status(
    campaign: Campaign, settings: CampaignSettings
) -> tuple[CampaignStatus, optuna.Study]:
    """A campaign as its study tells, opened for reading.

    Raises:
        CheckpointError: there is no such study.  StudyUnavailable: its database fails.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with database_errors(campaign.study):
        storage = campaign.open_storage(writes=False)
        try:
            study = optuna.load_study(study_name=campaign.name, storage=storage)
        except KeyError:
            raise CheckpointError(
                f"campaign `{campaign.name}` has no study yet, or it is in a database: give its "
                "URL with --study"
            ) from None
    return read_status(campaign, settings, study), study


def read_status(
    campaign: Campaign, settings: CampaignSettings, study: optuna.Study
) -> CampaignStatus:
    """What an open study tells now: a journal's reader reads what is new alone.

    Raises:
        StudyUnavailable: its database fails.
    """
    with database_errors(campaign.study):
        trials = study.get_trials(deepcopy=False)
        return build_status(campaign.name, settings, trials, study.user_attrs)


def write_report(campaign: Campaign, settings: CampaignSettings) -> bytes:
    """Write report.html, and best.yaml where there is a winner; gives the page."""
    status, study = load_status(campaign, settings)
    page = build_page(campaign, settings, status, study).encode()
    campaign.store.write(campaign.key("report.html"), page)
    if status.states["complete"]:
        best = best_yaml(campaign, settings, winner(status, settings))
        campaign.store.write(campaign.key("best.yaml"), best.encode())
    return page


def build_page(
    campaign: Campaign, settings: CampaignSettings, status: CampaignStatus, study: optuna.Study
) -> str:
    """The report as one HTML page."""
    from plotly.offline import get_plotlyjs  # a second of imports, which a status goes without

    from tuner.plots import draw_plots

    folders = [
        Path(__file__).parent / "templates",
        Path(cluster.view.report.__file__).parent / "templates",
    ]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "duration": duration, "short": short, "told": told}
    best = by_mean(status.rows, settings)
    plots = draw_plots(study, settings)
    return environment.get_template("campaign.html.j2").render(
        campaign=campaign,
        settings=settings,
        status=status,
        best=best[0] if best else None,
        best_yaml=best_yaml(campaign, settings, best[0]) if best else "",
        rows=[*best, *(row for row in status.rows if row.state != "complete")],
        grids=[(row, grid) for row in best[:GRIDS] if (grid := last_grid(campaign, row))],
        failures=[row for row in status.rows if row.state == "fail"],
        repeated=repeated(best, study.user_attrs, settings.run_settings({}).run.seed),
        costs=costs(status, study.user_attrs),
        spared=sum(
            settings.budget.images - row.images for row in status.rows if row.state == "pruned"
        ),
        plots=plots,
        plotly=Markup(get_plotlyjs()) if plots else "",
        settings_yaml=yaml.safe_dump(settings.to_dict(), sort_keys=False),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def repeated(best: Sequence[TrialRow], attributes: dict[str, object], seed: int) -> list[Repeated]:
    """Trials run with more seeds, the best mean first. `seed`: of the trials themselves."""
    found = []
    for row in best:
        if not row.repeats:
            continue
        values = {seed: row.values[0]} | {
            other: repeat["value"]
            for (trial, other), repeat in repeats_of(attributes).items()
            if trial == row.number and repeat.get("value") is not None
        }
        told = list(values.values())
        found.append(Repeated(row.number, values, statistics.fmean(told), statistics.stdev(told)))
    return found


def costs(status: CampaignStatus, attributes: dict[str, object]) -> list[Share]:
    """Where the work went: by how trials ended, and repeats."""
    found = []
    for state in ("complete", "pruned", "fail", "running"):
        rows = [row for row in status.rows if row.state == state]
        images, seconds = sum(row.images for row in rows), sum(row.seconds for row in rows)
        found.append(Share(state, len(rows), images, seconds))
    again = [repeat.get("cost", {}) for repeat in repeats_of(attributes).values()]
    images = sum(cost.get("images", 0) for cost in again)
    seconds = sum(cost.get("seconds", 0.0) for cost in again)
    found.append(Share("repeats", len(again), images, seconds))
    return [share for share in found if share.trials]


def last_grid(campaign: Campaign, row: TrialRow) -> str | None:
    """The last sample grid of a trial's run, as a data URL."""
    grids = Run(campaign.store, row.run).samples() if row.run else {}
    if not grids:
        return None
    data = campaign.store.read(grids[max(grids)])
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"

"""The plots of a campaign's report: Optuna's own, by Plotly, in the page's look."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from markupsafe import Markup
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import (
    plot_contour,
    plot_intermediate_values,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_pareto_front,
    plot_slice,
)

from tuner.settings import CampaignSettings, SearchObjective
from tuner.table import short

ENOUGH = 4  # complete trials, before anything can be said to matter
HEIGHT_PX = 380
DRAWABLE = 3  # objectives of a Pareto front
CONFIG = {"displayModeBar": False, "responsive": True}
WIDE = {"Each setting by itself", "All settings at once"}
PlotFunction = Callable[[], Any]  # gives a Plotly figure


@dataclass(frozen=True)
class Plot:
    """One plot of the page, and how to read it."""

    title: str
    reading: str
    html: Markup
    wide: bool


def draw_plots(study: optuna.Study, settings: CampaignSettings) -> list[Plot]:
    """The plots that there are trials enough for; none before one is complete."""
    study = _with_short_names(study)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    figures = [str(objective.figure) for objective in settings.objectives]
    plots = _of_values(study, figures, trials)
    varied = _varied(complete)
    if len(complete) >= ENOUGH and varied:
        plots += _of_settings(study, settings.objectives[0], varied)
    with _quiet():
        return [
            Plot(title, reading, _html(draw()), title in WIDE) for title, reading, draw in plots
        ]


def _of_values(
    study: optuna.Study, figures: list[str], trials: list[FrozenTrial]
) -> list[tuple[str, str, PlotFunction]]:
    """How the figures came about."""
    target = _first if len(figures) > 1 else None
    best = "" if len(figures) > 1 else "; the line is the best so far"
    history = (
        "History", f"A dot is a complete trial, in the order they were asked for{best}.",
        lambda: plot_optimization_history(study, target=target, target_name=figures[0])
        .update_layout(showlegend=False),
    )  # fmt: skip
    front = (
        "Pareto front", "Red trials are beaten by no other in every objective at once.",
        lambda: plot_pareto_front(study, target_names=figures)
        .update_traces(marker_showscale=False).update_layout(showlegend=False),
    )  # fmt: skip
    way = (
        "On the way", "The figure at every evaluation, over images; lines that end early were "
        "stopped at a rung.",
        lambda: plot_intermediate_values(study)
        .update_layout(xaxis_title="images", yaxis_title=figures[0]),
    )  # fmt: skip
    if 1 < len(figures) <= DRAWABLE:
        return [front, history]
    return [history, way] if any(trial.intermediate_values for trial in trials) else [history]


def _of_settings(
    study: optuna.Study, objective: SearchObjective, varied: list[str]
) -> list[tuple[str, str, PlotFunction]]:
    """What the settings had to do with the first figure."""
    evaluator = PedAnovaImportanceEvaluator()
    names: dict[str, Any] = {"target": _first, "target_name": objective.figure}

    def small_is_good(trial: FrozenTrial) -> float:
        return objective.rank(_first(trial))  # PED-ANOVA looks for what makes it small

    with _quiet():
        weights = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=varied, target=small_is_good
        )
    plots: list[tuple[str, str, PlotFunction]] = []
    if any(weights.values()):
        plots.append((
            "What mattered", "How much each setting tells the better half of the trials from the "
            "rest (PED-ANOVA). With few trials, a hint.",
            lambda: plot_param_importances(
                study, evaluator=evaluator, params=varied, target=small_is_good,
                target_name=objective.figure,
            ),
        ))  # fmt: skip
    if len(varied) > 1:
        plots.append((
            "The two that mattered most", "Where the good trials lie; the field between them is "
            "interpolated.", lambda: plot_contour(study, params=list(weights)[:2], **names),
        ))  # fmt: skip
    plots.append((
        "Each setting by itself", "Complete trials by the value of one setting; darker is later.",
        lambda: plot_slice(study, params=varied, **names),
    ))  # fmt: skip
    if len(varied) > 1:
        plots.append((
            "All settings at once", "A line is a trial; the darker, the better.",
            lambda: plot_parallel_coordinate(study, params=varied, **names),
        ))  # fmt: skip
    return plots


def _html(figure: Any) -> Markup:
    figure.update_layout(
        template="plotly_white", title=None, height=HEIGHT_PX, width=None, autosize=True,
        margin={"l": 64, "r": 24, "t": 36, "b": 52}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", font={"family": "system-ui, sans-serif", "size": 13},
        colorway=["#2457c5", "#c2571a", "#17743b", "#7a3fa0", "#8a5a00", "#b3261e"],
    )  # fmt: skip
    figure.update_xaxes(nticks=5, tickangle=0, exponentformat="e", selector={"type": "log"})
    figure.update_yaxes(exponentformat="e", selector={"type": "log"})
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _with_short_names(study: optuna.Study) -> optuna.Study:
    """A copy in memory: `eta` for `objective.eta`, where no other setting ends so."""
    trials = study.get_trials(deepcopy=False)
    names = {name for trial in trials for name in trial.params}
    ends = [short(name) for name in names]
    labels = {name: short(name) if ends.count(short(name)) == 1 else name for name in names}
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials([
        optuna.trial.create_trial(
            state=trial.state, values=trial.values, intermediate_values=trial.intermediate_values,
            params={labels[name]: value for name, value in trial.params.items()},
            distributions={labels[name]: each for name, each in trial.distributions.items()},
        )
        for trial in trials
    ])  # fmt: skip
    return copy


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """Settings of which more than one value was tried, and that every trial has."""
    names = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    return [name for name in names if len({trial.params[name] for trial in trials}) > 1]


def _first(trial: FrozenTrial) -> float:
    return float(trial.values[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks on its own plots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator", UserWarning)
        yield

"""The kinds of panels that the dashboards are made of, by Grafana's own types.

Every panel has a description: what it shows, and what a good value is. A query that needs no name
for its series is its expression alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import dashboard, prometheus, statetimeline, timeseries
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import prometheus as prom

DATASOURCE = grafana.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD, WATCH, BAD, PLAIN = "green", "orange", "red", "blue"
COLUMNS = 24  # of Grafana's grid
Limits = Sequence[tuple[float, str]]  # from which value on which colour
Texts = Mapping[str, tuple[str, str]]  # what is shown instead of a value, and its colour
Panel = timeseries.Panel | stats.Panel | tables.Panel | statetimeline.Panel
AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stats.Panel, tables.Panel, statetimeline.Panel)


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and how its series are called."""

    expr: str
    legend: str = "__auto"


def graph(
    title: str,
    description: str,
    *queries: Query | str,
    unit: str = "short",
    limits: Limits = (),
    stacked: bool = False,
    log_scale: bool = False,
    span: int = 8,
) -> timeseries.Panel:
    """Lines over time; `limits` are dashed lines."""
    panel = (
        timeseries.Panel()
        .unit(unit)
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .span_nulls(False)
        .tooltip(look.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
                 .sort(common.SortOrder.DESCENDING))
        .legend(look.VizLegendOptions().show_legend(True)
                .display_mode(common.LegendDisplayMode.LIST)
                .placement(common.LegendPlacement.BOTTOM))
    )  # fmt: skip
    if unit == "percentunit":
        panel = panel.axis_soft_min(0).axis_soft_max(1)
    elif not log_scale:
        panel = panel.axis_soft_min(0)
    if limits:
        dashed = look.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(limits)).thresholds_style(dashed)
    if stacked:
        panel = panel.stacking(look.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if log_scale:
        scale = look.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    return _finish(panel, title, description, queries, span, height=8)


def stat(
    title: str,
    description: str,
    *queries: Query | str,
    unit: str = "short",
    limits: Limits = (),
    texts: Texts | None = None,
    decimals: int | None = None,
    span: int = 4,
) -> stats.Panel:
    """The last value in the time that is looked at, so that finished runs have one too."""
    panel = (
        stats.Panel()
        .unit(unit)
        .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .text_mode(common.BigValueTextMode.AUTO)
        .thresholds(_thresholds(limits or [(0, PLAIN)]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if texts:
        panel = panel.mappings([_mapping(texts)]).graph_mode(common.BigValueGraphMode.NONE)
    return _finish(panel, title, description, queries, span, height=4)


def timeline(title: str, description: str, query: Query, texts: Texts) -> statetimeline.Panel:
    """States over time: a bar for each series, by the texts of its values."""
    panel = (
        statetimeline.Panel()
        .mappings([_mapping(texts)])
        .show_value(common.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(70)
    )
    return _finish(panel, title, description, [query], span=12, height=8)


@dataclass(frozen=True)
class Column:
    """A column of a table: the query whose values it shows, by the table's key."""

    title: str
    expr: str
    unit: str = "short"
    limits: Limits = ()
    texts: Texts | None = None


def table(
    title: str, description: str, key: str, columns: Sequence[Column], link: str, height: int = 9
) -> tables.Panel:
    """A table with a row for each value of the label `key`; `link`: where a row leads.

    Its queries are instant ones: they look back over `$__range` themselves.
    """
    panel = tables.Panel().show_header(True).cell_height(common.TableCellHeight.SM)
    names = {}
    for index, column in enumerate(columns):
        target = _target(column.expr, index).instant().format(prom.PromQueryFormat.TABLE)
        panel = panel.override_by_name(column.title, _column_look(column)).with_target(target)
        names[f"Value #{_letter(index)}"] = column.title
    links = [{"title": "Its dashboard", "url": link, "targetBlank": False}]
    panel = panel.override_by_name(key, [grafana.DynamicConfigValue("links", links)])
    order = {name: index for index, name in enumerate([key, *names])}
    organize = {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": order}
    panel = panel.with_transformation(grafana.DataTransformerConfig("merge", options={}))
    panel = panel.with_transformation(grafana.DataTransformerConfig("organize", options=organize))
    return _finish(panel, title, description, [], COLUMNS, height)


def _column_look(column: Column) -> list[grafana.DynamicConfigValue]:
    values: dict[str, object] = {"unit": column.unit}
    if column.limits:
        steps = [{"value": value, "color": color} for value, color in _steps(column.limits)]
        values["thresholds"] = {"mode": "absolute", "steps": steps}
    if column.texts:
        values["mappings"] = [_mapping(column.texts)]
    if column.limits or column.texts:
        values["custom.cellOptions"] = {"type": "color-text"}
    return [grafana.DynamicConfigValue(name, value) for name, value in values.items()]


def _finish(
    panel: AnyPanel, title: str, description: str, queries: Sequence[Query | str], span: int,
    height: int,
) -> AnyPanel:  # fmt: skip
    panel = panel.title(title).description(description).datasource(DATASOURCE)
    panel = panel.span(span).height(height)
    for index, query in enumerate(queries):
        panel = panel.with_target(_target(query, index).range())
    return panel


def _target(query: Query | str, index: int) -> prometheus.Dataquery:
    query = Query(query) if isinstance(query, str) else query
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .ref_id(_letter(index))
        .editor_mode(prom.QueryEditorMode.CODE)
        .legend_format(query.legend)
    )


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _steps(limits: Limits) -> list[tuple[float | None, str]]:
    """Grafana's steps: the first begins at minus infinity, which it writes as null."""
    return [(None, limits[0][1]), *limits[1:]]


def _thresholds(limits: Limits) -> dashboard.ThresholdsConfig:
    steps = [grafana.Threshold(value=value, color=color) for value, color in _steps(limits)]
    return dashboard.ThresholdsConfig().mode(grafana.ThresholdsMode.ABSOLUTE).steps(steps)


def _mapping(texts: Texts) -> grafana.ValueMap:
    return grafana.ValueMap(
        {
            value: grafana.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(texts.items())
        }
    )

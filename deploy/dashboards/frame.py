"""What the four dashboards have in common: variables, annotations, links, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as grafana

from deploy.dashboards.panels import DATASOURCE, Panel

TAG = "aalnet"
LABEL_QUERY = 3  # of Grafana's Prometheus variables: the result of a query
UIDS = {
    "Training run": "aalnet-training-run",
    "Campaign": "aalnet-campaign",
    "Endpoint": "aalnet-endpoint",
    "Cluster overview": "aalnet-cluster-overview",
}
Item = Panel | dashboard.Row


class Annotation(grafana.AnnotationQuery, Builder[grafana.AnnotationQuery]):
    """An annotation of Grafana's Prometheus source, with the fields that only that one has."""

    def __init__(
        self, name: str, expr: str, title: str, color: str, *, value_is_time: bool
    ) -> None:
        super().__init__(name=name, datasource=DATASOURCE, icon_color=color, expr=expr)
        self._title, self._value_is_time = title, value_is_time

    def build(self) -> grafana.AnnotationQuery:
        """Itself: it is what a dashboard's builder asks for."""
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana keeps it. Times are milliseconds there."""
        extra: dict[str, object] = {"step": "60s", "titleFormat": self._title}
        if self._value_is_time:
            extra["useValueForTime"] = "on"
        return super().to_json() | extra


def restarts(matcher: str) -> Annotation:
    """Marks where a run went on after a failure, by its cause."""
    now = f"max by (run, cause) (aalnet_restarts_total{{{matcher}}})"
    before = f"max by (run, cause) (aalnet_restarts_total{{{matcher}}} offset 1m)"
    title = "{{run}} started again: {{cause}}"
    return Annotation("Restarts", f"{now} > {before}", title, "orange", value_is_time=False)


def promotions() -> Annotation:
    """Marks when the model was promoted that requests get."""
    expr = "1000 * max by (model) (aalnet_endpoint_model_served_timestamp_seconds)"
    return Annotation("Promotions", expr, "promoted: {{model}}", "purple", value_is_time=True)


def label_variable(
    label: str, metric: str, title: str, *, several: bool = False
) -> dashboard.QueryVariable:
    """The values of a label that a metric had at any time of what is looked at.

    So runs that are finished are found too; asking for a label's present values finds them not.
    """
    expr = f"query_result(max by ({label}) (last_over_time({metric}[$__range])))"
    query: dict[str, object] = {"query": expr, "qryType": LABEL_QUERY, "refId": label}
    variable = (
        dashboard.QueryVariable(label)
        .label(title)
        .datasource(DATASOURCE)
        .query(query)
        .regex(f'/{label}="([^"]+)"/')
        .refresh(grafana.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(grafana.VariableSort.ALPHABETICAL_ASC)
    )
    return variable.multi(True).include_all(True).all_value(".*") if several else variable


def assemble(
    title: str,
    description: str,
    items: Sequence[Item],
    variables: Sequence[dashboard.QueryVariable] = (),
    annotations: Sequence[Annotation] = (),
    hours: int = 6,
) -> str:
    """A dashboard's JSON, as it is committed."""
    board = (
        dashboard.Dashboard(title)
        .uid(UIDS[title])
        .description(description)
        .tags([TAG])
        .time(f"now-{hours}h", "now")
        .timezone("browser")
        .refresh("30s")
        .tooltip(grafana.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for variable in variables:
        board = board.with_variable(variable)
    for annotation in annotations:
        board = board.annotation(annotation)
    for link in _links():
        board = board.link(link)
    for number, item in enumerate(items, start=1):
        if isinstance(item, dashboard.Row):
            board = board.with_row(item.id(number))
        else:
            board = board.with_panel(item.id(number))
    return json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _links() -> list[dashboard.DashboardLink]:
    """To each other, keeping time and variables; and to Ray's own."""
    ours = (
        dashboard.DashboardLink("AALNet")
        .type(grafana.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    rays = [
        dashboard.DashboardLink(title)
        .type(grafana.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .keep_time(True)
        .tooltip("Ray's own dashboard, where Grafana has it")
        for title, uid in (("Ray Train", "rayTrainDashboard"), ("Ray nodes", "rayDefaultDashboard"))
    ]
    return [ours, *rays]

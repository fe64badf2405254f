"""A real Prometheus on a two-worker run, an endpoint under load and a campaign."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.telemetry.catalogue import CATALOGUE, series_names
from tests.support.grafana import (
    PATHS,
    Window,
    answer,
    choices,
    filled,
    load,
    over,
    queries,
    variables,
)
from tests.support.live_metrics import CAMPAIGN, RUN, live_prometheus
from tests.support.prometheus_server import query, value

pytestmark = pytest.mark.timeout(1200)  # all that has to start first

OURS = '{__name__=~"aalnet_.*"}'
NOT_HERE = {"aalnet_gpu_memory_bytes", "aalnet_gpu_busy_ratio"}  # there is no GPU
SERIES_OF_A_RUN = 350  # with two workers


@pytest.fixture(scope="module")
def live_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Prometheus's address. Of this module alone: nothing else should run beside all that."""
    with live_prometheus(tmp_path_factory.mktemp("live")) as base:
        yield base


def test_every_metric_is_scraped(live_metrics: str) -> None:
    stored = {found["metric"]["__name__"] for found in query(live_metrics, OURS)}
    wanted = series_names(CATALOGUE.values()) - NOT_HERE
    assert wanted - stored == set()
    assert stored <= series_names(CATALOGUE.values())


def test_the_figures_are_of_both_workers_and_make_sense(live_metrics: str) -> None:
    def now(expression: str) -> float:
        found = value(live_metrics, expression)
        assert found is not None, expression
        return found

    assert now("count(aalnet_step_seconds_count{run='live'})") == 2
    assert now("aalnet_workers{run='live'} == aalnet_workers_wanted{run='live'}") == 2
    assert now("aalnet_run_state{run='live',state='running'}") == 1
    assert now("rate(aalnet_images_total{run='live'}[1m])") > 1
    assert 0 < now("aalnet_goodput_ratio{run='live'}") < 1
    assert now("aalnet_checkpoint_images{run='live'}") > 0
    assert now("time() - aalnet_checkpoint_timestamp_seconds{run='live'}") < 120
    assert now("time() - aalnet_run_last_progress_timestamp_seconds{run='live'}") < 30
    assert now("sum(rate(aalnet_communication_seconds_sum{run='live'}[1m]))") > 0
    assert now("aalnet_restarts_total{run='live',cause='crash'}") == 1
    assert now("sum(rate(aalnet_endpoint_requests_total{code='200'}[1m]))") > 0
    assert now("sum(rate(aalnet_endpoint_rejected_total{reason='label'}[1m]))") > 0
    assert now("aalnet_endpoint_model_served_timestamp_seconds") == now(
        "aalnet_endpoint_model_promoted_timestamp_seconds"
    )


def test_a_run_has_a_bounded_number_of_series(live_metrics: str) -> None:
    assert (
        value(live_metrics, "count({__name__=~'aalnet_.*', run='live'})") or 0
    ) < SERIES_OF_A_RUN


def test_a_campaign_is_told_of(live_metrics: str) -> None:
    def now(expression: str) -> float:
        found = value(live_metrics, expression)
        assert found is not None, expression
        return found

    trials = "aalnet_campaign_trials{campaign='live-campaign',state='%s'}"
    assert now(trials % "complete") + now(trials % "pruned") >= 1
    assert now(trials % "fail") == 0
    assert now("aalnet_campaign_images_total{campaign='live-campaign'}") > 0
    assert 0 < now("aalnet_campaign_spent_seconds") < now("aalnet_campaign_budget_seconds")
    assert now("time() - aalnet_campaign_last_progress_timestamp_seconds") < 300
    best = query(live_metrics, "aalnet_campaign_best_value")
    assert [found["metric"]["objective"] for found in best] == ["energy_score"]
    assert now("count(count by (campaign) (aalnet_campaign_trials))") == 1


def test_no_label_is_unbounded(live_metrics: str) -> None:
    long = re.compile(r"[0-9a-f]{12,}|[0-9]{6,}")
    labels = {
        label
        for found in query(live_metrics, OURS)
        for label, text in found["metric"].items()
        if long.search(text)
    }
    assert labels <= {"digest", "images", "instance"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_query_of_every_panel_gets_data(path: Path, live_metrics: str) -> None:
    board, now_s = load(path), time.time()
    window = Window(now_s - 600, now_s)
    chosen = {name: choices(live_metrics, variable, window)
              for name, variable in variables(board).items()}  # fmt: skip
    values = {name: found[0] for name, found in chosen.items()}
    if "run" in chosen:
        assert RUN in chosen["run"]
        values["run"] = RUN
    if "campaign" in chosen:
        assert chosen["campaign"] == [CAMPAIGN]
    empty = [
        (asked.panel, asked.expr)
        for asked in queries(board)
        if not answer(live_metrics, asked, values, window)
    ]
    assert empty == []
    for item in board["annotations"]["list"]:
        assert over(live_metrics, filled(item["expr"], values), window), item["name"]

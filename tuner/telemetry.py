"""A campaign's metrics, served by its driver: what its table shows, for Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from aalnet.settings import TelemetrySettings
from cluster.telemetry.catalogue import CATALOGUE
from cluster.telemetry.exporter import serve
from tuner.status import CampaignStatus

Show = Callable[[CampaignStatus], None]


class CampaignCollector(Collector):
    """The last status as metrics, at each scrape."""

    def __init__(self) -> None:
        self._status: CampaignStatus | None = None

    def take(self, status: CampaignStatus) -> None:
        """Keep a campaign's status in place of the one before."""
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The last status; nothing before the first."""
        if (status := self._status) is not None:
            yield from families_of(status)


def families_of(status: CampaignStatus) -> Iterator[Metric]:
    """A status as metrics; what is not known yet is left out."""
    yield _gauge("trials", status, status.states)
    yield _gauge("best_value", status, status.best)
    for name, value in {
        "target_trials": status.trials,
        "pruned_ratio": status.pruned_share,
        "spent_seconds": status.seconds,
        "budget_seconds": status.budget_s,
        "start_timestamp_seconds": status.began_at_s,
        "last_progress_timestamp_seconds": status.progress_at_s,
    }.items():
        if value is not None:
            yield _gauge(name, status, {"": value})
    labels = [status.campaign]
    for name, total in (("images", status.images), ("gpu_seconds", status.gpu_seconds)):
        spec = CATALOGUE[f"aalnet_campaign_{name}_total"]
        counter = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
        counter.add_metric(labels, total)
        yield counter
    spec = CATALOGUE["aalnet_campaign_suggestion_seconds"]
    summary = SummaryMetricFamily(spec.name, spec.help, labels=spec.labels)
    summary.add_metric(labels, status.suggestions, status.suggestion_s)
    yield summary


def _gauge(name: str, status: CampaignStatus, values: Mapping[str, float]) -> Metric:
    """A gauge of a campaign, by its other label where it has one."""
    spec = CATALOGUE[f"aalnet_campaign_{name}"]
    gauge = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for label, value in values.items():
        gauge.add_metric([status.campaign, label][: len(spec.labels)], value)
    return gauge


@contextlib.contextmanager
def exported(campaign: str, telemetry: TelemetrySettings, show: Show) -> Iterator[Show]:
    """Serve a campaign's metrics; gives a `show` that takes them in besides."""
    collector = CampaignCollector()

    def both(status: CampaignStatus) -> None:
        collector.take(status)
        show(status)

    with serve(f"campaign/{campaign}", telemetry, collector):
        yield both

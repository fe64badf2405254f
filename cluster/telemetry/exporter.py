"""One scrape address per run: what its workers tell, served to Prometheus by the driver."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from aalnet.settings import TelemetrySettings
from cluster.telemetry.catalogue import CATALOGUE
from cluster.telemetry.targets import Target, announced

SCRAPER = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"  # a header of scrapers, not of people
SCRAPES_KEPT = 5  # of the last ones, the longest pause tells how often somebody scrapes
PORT = 9464  # OpenTelemetry's for Prometheus exporters; manifests name it `aalnet-metrics`
Snapshot = Mapping[str, Any]  # what `Tally.snapshot` gives
FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily, "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily, "summary": SummaryMetricFamily,
}  # fmt: skip


class Exporter(Collector):
    """Serves snapshots while it is entered, and tells Prometheus where.

    A port that is taken, a folder that cannot be written: warned of once, and nothing is served.
    """

    def __init__(
        self,
        instance: str,
        settings: TelemetrySettings,
        read: Callable[[], Iterable[Snapshot]],
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._instance, self._settings, self._read = instance, settings, read
        self._warn = warn or (lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
        self._scraped_at_s: deque[float] = deque(maxlen=SCRAPES_KEPT)
        self._scraped = threading.Condition()
        self._open = contextlib.ExitStack()
        self.port: int | None = None

    def __enter__(self) -> Self:
        if self._settings.port != 0:
            try:
                self._open.enter_context(self._serving())
            except (OSError, UnicodeError) as error:  # UnicodeError: of a host's name
                self._warn(f"no metrics are served: {error}; see telemetry.port and telemetry.host")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop serving; where somebody scrapes, after the figures of the end were scraped."""
        asked_to = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            if not asked_to:
                self._await_scrape()
        finally:
            self._open.close()

    def collect(self) -> Iterator[Metric]:
        """Every metric that there are numbers for: called at each scrape."""
        families: dict[str, Any] = {}
        for snapshot in self._read():
            for name, key, value in snapshot["values"]:
                self._family(families, name).add_metric(key, value)
            for name, key, counts, total in snapshot["spreads"]:
                self._add_spread(self._family(families, name), name, key, counts, total)
        yield from families.values()

    def describe(self) -> list[Metric]:
        """Nothing: so registering it collects nothing."""
        return []

    def _family(self, families: dict[str, Any], name: str) -> Any:
        if name not in families:
            metric = CATALOGUE[name]
            families[name] = FAMILIES[metric.kind](name, metric.help, labels=metric.labels)
        return families[name]

    def _add_spread(
        self, family: Any, name: str, key: list[str], counts: list[int], total: float
    ) -> None:
        if isinstance(family, SummaryMetricFamily):
            family.add_metric(key, count_value=sum(counts), sum_value=total)
            return
        below, buckets = 0, []
        bounds = [*(f"{bound:g}" for bound in CATALOGUE[name].buckets), "+Inf"]
        for bound, count in zip(bounds, counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(key, buckets, total)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        registry = CollectorRegistry()
        registry.register(self)
        server, thread = self._start(registry)
        server.set_app(self._noting(server.get_app()))
        self.port = server.server_port
        target = Target(self._instance, self._settings.host, self.port, os.getpid())
        try:
            with announced(target, self._warn):
                yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _start(self, registry: CollectorRegistry) -> Any:
        """The server and its thread; on `auto`, where the usual port is taken, on a free one."""
        host, port = self._settings.host, self._settings.port
        if port != "auto":
            return start_http_server(port, host, registry)
        try:
            return start_http_server(PORT, host, registry)
        except OSError:
            return start_http_server(0, host, registry)

    def _noting(self, app: Any) -> Any:
        """The same WSGI application; once a scraper's answer is out, it notes when it was asked."""

        def answer(environ: Any, start_response: Any) -> Iterator[bytes]:
            asked_s = time.monotonic()
            yield from app(environ, start_response)
            if SCRAPER in environ:
                with self._scraped:
                    self._scraped_at_s.append(asked_s)
                    self._scraped.notify_all()

        return answer

    def _await_scrape(self) -> None:
        """Wait for one more scrape, where there were any of late, for as long as they take."""
        with self._scraped:
            pauses_s = [after - before for before, after in pairwise(self._scraped_at_s)]
            if not pauses_s:
                return
            every_s, now_s = max(pauses_s), time.monotonic()
            if now_s - self._scraped_at_s[-1] > 2 * every_s:  # nobody scrapes any more
                return
            patience_s = min(every_s + 1, self._settings.linger_s)
            self._scraped.wait_for(lambda: self._scraped_at_s[-1] > now_s, patience_s)

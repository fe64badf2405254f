"""The endpoint's metrics, in a registry of their own; docs/metrics.md says what each means."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from cluster.runs.promotions import Promotion
from cluster.telemetry.catalogue import CATALOGUE


class Metrics:
    """One object per endpoint; every label value comes from a short, fixed list."""

    def __init__(self) -> None:
        # They are a second series for each, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests_total")
        seconds = self._histogram("seconds")
        self.queue_seconds = seconds.labels("queue")
        self.model_seconds = seconds.labels("model")
        self.total_seconds = seconds.labels("total")
        self.batch_samples = self._histogram("batch_samples")
        self.batch_fill = self._histogram("batch_fill")
        self.samples = self._counter("samples_total")
        self.rejected = self._counter("rejected_total")
        self.queued = self._gauge("queued_samples")
        self.queue_limit = self._gauge("queue_limit_samples")
        self.model = self._gauge("model_info")
        self.promoted = self._gauge("model_promoted_timestamp_seconds")
        self.served = self._gauge("model_served_timestamp_seconds")
        self.swaps = self._counter("swaps_total")
        for outcome in ("swapped", "refused"):
            self.swaps.labels(outcome)

    def serves(self, model: str, run: str, images: int, digest: str) -> None:
        """Say which model new requests get."""
        self.model.clear()
        self.model.labels(model, run, str(images), digest).set(1)

    def follows(self, seen: Promotion, served: Promotion) -> None:
        """Say when the newest promotion was made, and the one that is served."""
        self.promoted.labels(seen.model).set(seen.promoted_at_s)
        self.served.labels(served.model).set(served.promoted_at_s)

    def _counter(self, name: str) -> Counter:
        return Counter(**self._facts(name))

    def _gauge(self, name: str) -> Gauge:
        return Gauge(**self._facts(name))

    def _histogram(self, name: str) -> Histogram:
        facts = self._facts(name)
        return Histogram(**facts, buckets=CATALOGUE[facts["name"]].buckets)

    def _facts(self, name: str) -> dict[str, Any]:
        metric = CATALOGUE[f"aalnet_endpoint_{name}"]
        return {"name": metric.name, "documentation": metric.help, "labelnames": metric.labels,
                "registry": self.registry}  # fmt: skip

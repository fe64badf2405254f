"""The endpoint's metrics, in a registry of their own; docs/metrics.md says what each means."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from cluster.runs.promotions import Promotion
from cluster.telemetry.metrics import build


class Metrics:
    """One object per endpoint; every label value comes from a short, fixed list."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._build("requests_total")
        seconds = self._build("seconds")
        self.queue_seconds = seconds.labels("queue")
        self.model_seconds = seconds.labels("model")
        self.total_seconds = seconds.labels("total")
        self.batch_samples = self._build("batch_samples")
        self.batch_fill = self._build("batch_fill")
        self.samples = self._build("samples_total")
        self.rejected = self._build("rejected_total")
        self.queued = self._build("queued_samples")
        self.queue_limit = self._build("queue_limit_samples")
        self.model = self._build("model_info")
        self.promoted = self._build("model_promoted_timestamp_seconds")
        self.served = self._build("model_served_timestamp_seconds")
        self.swaps = self._build("swaps_total")
        for outcome in ("swapped", "refused"):
            self.swaps.labels(outcome)

    def serves(self, model: str, run: str, images: int, digest: str) -> None:
        """Say which model new requests get."""
        self.model.clear()
        self.model.labels(model, run, str(images), digest).set(1)

    def follows(self, newest: Promotion, served: Promotion) -> None:
        """Say when the newest promotion was made, and the one that is served."""
        self.promoted.labels(newest.model).set(newest.promoted_at_s)
        self.served.labels(served.model).set(served.promoted_at_s)

    def _build(self, name: str) -> Any:
        return build(f"aalnet_endpoint_{name}", self.registry)

"""The endpoint's metrics, in a registry of their own; docs/endpoint.md lists them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


class Metrics:
    """One object per endpoint; every label value comes from a short, fixed list."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "aalnet_endpoint_requests_total", "Answered requests", ["route", "code"],
            registry=registry,
        )  # fmt: skip
        seconds = Histogram(
            "aalnet_endpoint_seconds",
            "Seconds of an answered POST /v1/samples: in the queue, in the model, in all",
            ["part"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_seconds = seconds.labels("queue")
        self.model_seconds = seconds.labels("model")
        self.total_seconds = seconds.labels("total")
        self.batch_samples = Histogram(
            "aalnet_endpoint_batch_samples", "Samples in a batch", buckets=SAMPLES,
            registry=registry,
        )  # fmt: skip
        self.batch_fill = Histogram(
            "aalnet_endpoint_batch_fill", "Share of the largest batch that a batch filled",
            buckets=SHARES, registry=registry,
        )  # fmt: skip
        self.samples = Counter("aalnet_endpoint_samples_total", "Samples drawn", registry=registry)
        self.rejected = Counter(
            "aalnet_endpoint_rejected_total", "Requests refused, by reason", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.queued = Gauge(
            "aalnet_endpoint_queued_samples", "Samples that wait for a batch", registry=registry
        )
        self.model = Gauge(
            "aalnet_endpoint_model_info", "1 for the model that new requests get",
            ["model", "run", "images", "digest"], registry=registry,
        )  # fmt: skip
        self.swaps = Counter(
            "aalnet_endpoint_swaps_total", "Promotions met: swapped in, or refused", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for outcome in ("swapped", "refused"):
            self.swaps.labels(outcome)

    def serves(self, model: str, run: str, images: int, digest: str) -> None:
        """Say which model new requests get."""
        self.model.clear()
        self.model.labels(model, run, str(images), digest).set(1)

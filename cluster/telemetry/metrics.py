"""Metrics of the catalogue as prometheus-client's own, on a registry of their own."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
)

from cluster.telemetry.catalogue import CATALOGUE, TRAINING

CLASSES: dict[str, Any] = {
    "counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary,
}  # fmt: skip
Samples = dict[str, list[list[Any]]]  # by family: the name, labels and value of each sample


def build(name: str, registry: CollectorRegistry) -> Any:
    """The catalogue's metric of this name: a Counter, Gauge, Histogram or Summary."""
    # Series of when a counter began would be a second one for each, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    spec = CATALOGUE[name]
    buckets = {"buckets": spec.buckets} if spec.buckets else {}
    return CLASSES[spec.kind](spec.name, spec.help, spec.labels, registry=registry, **buckets)


class RunMetrics:
    """The metrics of a run that one process measures; `labels` are those of all their series."""

    def __init__(self, **labels: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = labels
        self._metrics = {spec.name: build(spec.name, self.registry) for spec in TRAINING}

    def set(self, name: str, value: Any, **labels: str) -> None:
        """Set a gauge. What is no number raises ValueError or TypeError, and makes no series."""
        number = float(value)
        self._series(name, labels).set(number)

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Move a counter on; by 0 it is there from now on."""
        number = float(by)
        self._series(name, labels).inc(number)

    def set_total(self, name: str, total: float, **labels: str) -> None:
        """Set a counter that is kept elsewhere; by the thread that reads `samples`."""
        counter = self._series(name, labels)
        counter.reset()
        counter.inc(total)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        number = float(value)
        self._series(name, labels).observe(number)

    def samples(self) -> Samples:
        """The values of now as plain data."""
        return {
            family.name: [[sample.name, sample.labels, sample.value] for sample in family.samples]
            for family in self.registry.collect()
            if family.samples
        }

    def _series(self, name: str, labels: dict[str, str]) -> Any:
        labels |= self._labels
        return self._metrics[name].labels(*[labels[label] for label in CATALOGUE[name].labels])

"""The numbers of one process by metric and labels: adding to them costs microseconds."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from cluster.telemetry.catalogue import CATALOGUE

SERIES = 100  # of one metric at most, whatever a damaged log holds
Key = tuple[str, ...]  # values of a metric's labels, in the catalogue's order


@dataclass
class Spread:
    """A histogram: how many values fell under each bound, the last count is of those above all."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """Values and spreads. `always` are labels that every metric with such a label gets."""

    def __init__(self, **always: str) -> None:
        self._always = always
        self._values: dict[str, dict[Key, float]] = {}
        self._spreads: dict[str, dict[Key, Spread]] = {}
        self._lock = threading.Lock()

    def set(self, name: str, value: float, **labels: str) -> None:
        """Give a gauge, or a counter that is kept elsewhere, its value."""
        with self._lock:
            series = self._values.setdefault(name, {})
            key = self._key(name, labels)
            if key in series or len(series) < SERIES:
                series[key] = float(value)

    def add(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Move a counter on."""
        key = self._key(name, labels)
        with self._lock:
            series = self._values.setdefault(name, {})
            series[key] = series.get(key, 0.0) + by

    def observe(self, name: str, value: float) -> None:
        """Count a value in a histogram."""
        key = self._key(name, {})
        with self._lock:
            series = self._spreads.setdefault(name, {})
            if key not in series:
                series[key] = Spread(CATALOGUE[name].buckets)
            series[key].observe(value)

    def snapshot(self) -> dict[str, Any]:
        """All numbers of now, as plain data: `values` and `spreads`."""
        with self._lock:
            return {
                "values": [
                    [name, list(key), value]
                    for name, series in self._values.items()
                    for key, value in series.items()
                ],
                "spreads": [
                    [name, list(key), list(spread.counts), spread.sum]
                    for name, series in self._spreads.items()
                    for key, spread in series.items()
                ],
            }

    def _key(self, name: str, labels: dict[str, str]) -> Key:
        wanted = CATALOGUE[name].labels
        return tuple(labels[label] if label in labels else self._always[label] for label in wanted)

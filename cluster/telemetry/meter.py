"""What a run logs about itself, averaged between two lines of metrics.jsonl."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from cluster.runs.run import Record


@dataclass
class Meter:
    """Means of terms and seconds since the last record."""

    total_images: int
    _terms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _steps: int = 0
    _images: int = 0
    _step_s: float = 0.0
    _data_s: float = 0.0

    def add(self, terms: dict[str, float], images: int, step_s: float, data_s: float) -> None:
        """Count one step. A term that is due only now and then is averaged over those steps."""
        for name, value in terms.items():
            self._terms[name].append(value)
        self._steps += 1
        self._images += images
        self._step_s += step_s
        self._data_s += data_s

    def record(self, images_seen: int, steps: int, lr: float) -> Record:
        """The record of the steps since the last one, and a fresh start."""
        busy_s = self._step_s + self._data_s
        rate = self._images / busy_s
        means: Record = {
            "kind": "train",
            "images": images_seen,
            "steps": steps,
            "terms": {name: sum(v) / len(v) for name, v in self._terms.items()},
            "lr": lr,
            "step_s": self._step_s / self._steps,
            "data_s": self._data_s / self._steps,
            "images_per_s": rate,
            "eta_s": max(0, self.total_images - images_seen) / rate,
        }
        self.__init__(self.total_images)  # type: ignore[misc]
        return means

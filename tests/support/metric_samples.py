"""A run's log that fills every metric of it, and the samples of metrics by name and labels."""

from __future__ import annotations

from typing import Any

from cluster.runs.run import Record
from cluster.telemetry.catalogue import CATALOGUE

Values = dict[tuple[str, tuple[str, ...]], float]

LOG: list[Record] = [
    {"kind": "start", "images": 8, "time_s": 100.0, "recovery_s": 7.0, "lost_s": 3.0,
     "lost_images": 12, "cause": "crash", "workers": 2},
    {"kind": "train", "images": 16, "time_s": 110.0, "lr": 0.1, "step_s": 2.0, "data_s": 0.5,
     "images_per_s": 9.0, "terms": {"entropy": 0.5, "real_accuracy": 0.9, "fake_accuracy": 0.7,
                                    "discriminator_accuracy": 0.6, "generator_norm": 3.0}},
    {"kind": "evaluation", "images": 16, "time_s": 114.0, "kid_unpaired_lite0": 0.2,
     "diversity": 0.1, "kid_unpaired_lite0_condition": 0.6, "seconds": 4.0, "ema_distance": 0.01},
    {"kind": "checkpoint", "images": 16, "time_s": 115.0, "bytes": 1000, "seconds": 2.0,
     "stall_s": 0.125},
    {"kind": "warning", "images": 16, "time_s": 116.0, "text": "hm"},
    {"kind": "end", "images": 16, "time_s": 117.0, "status": "failed", "cause": "non_finite"},
]  # fmt: skip


def values_of(samples: dict[str, Any]) -> Values:
    """By name and the labels' values, in the catalogue's order; without buckets."""
    return {
        (name, tuple(labels[label] for label in metric.labels)): value
        for family in samples.values()
        for name, labels, value in family
        if "le" not in labels
        for metric in [CATALOGUE[name] if name in CATALOGUE else CATALOGUE[name.rpartition("_")[0]]]
    }

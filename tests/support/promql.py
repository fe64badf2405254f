"""Which metrics and labels a PromQL expression asks for, against the catalogue of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.telemetry.catalogue import CATALOGUE, MetricSpec

# A metric of ours is `aalnet_`; what a rule records is `aalnet:`.
SELECTOR = re.compile(r"(?<![\w:])((?:aalnet|ray)[_:][a-z0-9_:]+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPED = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
# Prometheus' own, a histogram's, a pod's, and those of Ray's node agents.
FREE_LABELS = {"job", "instance", "namespace", "pod", "le", "alertname"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def series() -> dict[str, MetricSpec]:
    """Every series' name that Prometheus stores of ours, with its metric."""
    return {
        metric.name + suffix: metric
        for metric in CATALOGUE.values()
        for suffix in SUFFIXES.get(metric.kind, ("",))
    }


def selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that an expression names, with the labels that it matches."""
    for selector in SELECTOR.finditer(expr):
        yield selector[1], set(MATCHER.findall(selector[2] or ""))


def unknown(expr: str, recorded: set[str]) -> Iterator[str]:
    """What an expression asks for and nothing gives; `recorded`: names that rules record."""
    metrics, labels = series(), set(FREE_LABELS)
    for name, matched in selectors(expr):
        if name.startswith("ray_") or name in recorded:
            continue
        if name not in metrics:
            yield f"no metric {name}"
            continue
        labels |= set(metrics[name].labels)
        yield from (
            f"{name} has no label {label}"
            for label in matched - set(metrics[name].labels) - FREE_LABELS
        )
    for group in GROUPED.findall(expr):
        names = {label.strip() for label in group.split(",") if label.strip()}
        yield from (f"nothing here has a label {label}" for label in names - labels)

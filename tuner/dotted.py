"""Settings by their dotted names: `objective.K` is `K` of the section `objective`."""

from __future__ import annotations

import copy
from typing import Any


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Each section's values by their dotted names; what stands in no section by its own."""
    result: dict[str, Any] = {}
    for section, inner in values.items():
        if isinstance(inner, dict):
            result |= {f"{section}.{key}": value for key, value in inner.items()}
        else:
            result[section] = inner
    return result


def with_values(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with each dotted name set."""
    result = copy.deepcopy(base)
    for dotted, value in values.items():
        *parents, key = dotted.split(".")
        target = result
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[key] = value
    return result

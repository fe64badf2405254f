"""Objects as text: YAML that reads well, and the difference between two."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence

import yaml

from deploy.operator.objects import Object

SERVER_FIELDS = (
    "creationTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields",
    "resourceVersion", "selfLink", "uid",
)  # fmt: skip
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


def _represent_text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def as_yaml(objects: Sequence[Object]) -> str:
    """YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False)


def without_server_fields(item: Object | None) -> Object | None:
    """A copy of an object without what only the server writes."""
    if item is None:
        return None
    copied = copy.deepcopy({key: value for key, value in item.items() if key != "status"})
    metadata = copied["metadata"]
    for key in SERVER_FIELDS:
        metadata.pop(key, None)
    metadata.get("annotations", {}).pop(LAST_APPLIED, None)
    if not metadata.get("annotations"):
        metadata.pop("annotations", None)
    return copied


def difference(before: Object | None, after: Object, title: str) -> list[str]:
    """A unified diff, without the server's own fields; empty where nothing differs."""
    old, new = ("" if item is None else yaml.dump(without_server_fields(item), Dumper=_Dumper)
                for item in (before, after))  # fmt: skip
    return list(difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"live {title}", f"new {title}", lineterm="",
    ))  # fmt: skip

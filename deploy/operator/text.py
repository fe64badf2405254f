"""Objects as text: YAML that reads well, and the difference between two."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence

import yaml

from deploy.operator.objects import Object

OF_THE_SERVER = (
    "creationTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields",
    "resourceVersion", "selfLink", "uid",
)  # fmt: skip
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
CONTEXT_LINES = 3


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(objects: Sequence[Object]) -> str:
    """YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False)


def plain(item: Object | None) -> Object | None:
    """An object without what only the server writes."""
    if item is None:
        return None
    kept = {key: copy.deepcopy(value) for key, value in item.items() if key != "status"}
    for key in OF_THE_SERVER:
        kept["metadata"].pop(key, None)
    annotations = kept["metadata"].get("annotations", {})
    annotations.pop(LAST_APPLIED, None)
    if not annotations:
        kept["metadata"].pop("annotations", None)
    return kept


def difference(before: Object | None, after: Object, title: str) -> list[str]:
    """A unified diff, without the server's own fields; empty where nothing differs."""
    old = "" if before is None else _sorted(before)
    lines = difflib.unified_diff(
        old.splitlines(), _sorted(after).splitlines(), f"live {title}", f"new {title}",
        n=CONTEXT_LINES, lineterm="",
    )  # fmt: skip
    return list(lines)


def _sorted(item: Object) -> str:
    return yaml.dump(plain(item), Dumper=_Dumper, sort_keys=True)

"""What an operator asks of the manifests, applied to the objects as data. Nothing is sent here.

docs/kubernetes.md has the table of what lies where.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shlex
from collections.abc import Sequence

from deploy.operator import endpoint_changes, job_changes
from deploy.operator.arguments import Changes, check_name
from deploy.operator.errors import ManifestError
from deploy.operator.objects import (
    INSTANCE,
    JOBS,
    KINDS,
    MADE_BY,
    MANAGER,
    Component,
    Object,
    config_map,
    containers,
    default_name,
    leaves,
    title,
    workload,
)

HASH = re.compile(r"-[a-z0-9]{10}$")
BLANKS = re.compile(r"\b(ACCOUNT|BUCKET|CLUSTER-QUEUE|OWNER|REGION)\b")
RAY_KINDS = ("RayJob", "RayService")
RUN_OPTION = {"trainer": "--run", "campaign": "--name"}


def changed(objects: Sequence[Object], component: Component, asked: Changes) -> list[Object]:
    """The objects of a component as asked, ours by their labels.

    Raises:
        UserError: what is asked cannot be; the message has the rule and the next move.
    """
    made = copy.deepcopy(list(objects))
    if asked.name is not None:
        _rename(made, component, asked.name)
    if asked.image is not None:
        for container in containers(workload(made)):
            container["image"] = asked.image
    if asked.storage is not None:
        config_map(made, "environment")["data"]["AALNET_STORAGE"] = asked.storage
    if workload(made)["kind"] in JOBS:
        job_changes.apply(made, component, asked)
    else:
        endpoint_changes.apply(made, asked)
    for item in made:
        item["metadata"].setdefault("labels", {})[MADE_BY] = MANAGER
        if asked.namespace is not None:
            item["metadata"]["namespace"] = asked.namespace
    _rehash(made)
    for item in made:
        _check(item)
    return made


def blanks(objects: Sequence[Object]) -> list[str]:
    """What still stands in CAPITALS for the user to fill in, one line each."""
    found = []
    for item in objects:
        for path, value in leaves(item):
            if isinstance(value, str) and (blank := BLANKS.search(value)):
                found.append(f"{title(item)} {path}: {blank[0]} in `{value.strip()[:80]}`")
    return found


def _rename(objects: list[Object], component: Component, name: str) -> None:
    found = workload(objects)
    old = found["metadata"].get("labels", {}).get(INSTANCE, default_name(component))
    names = {
        item["metadata"]["name"]: name + item["metadata"]["name"].removeprefix(old)
        for item in objects
        if item["metadata"]["name"].startswith(old)
    }
    for item in objects:
        _replace(item, names, {old: name})
    if found["kind"] in JOBS:
        option, words = RUN_OPTION[component], shlex.split(found["spec"]["entrypoint"])
        if option not in words[:-1]:
            raise ManifestError(f"{title(found)}: its entrypoint has no {option}; add it")
        words[words.index(option) + 1] = name
        found["spec"]["entrypoint"] = shlex.join(words)


def _replace(value: object, names: dict[str, str], instances: dict[str, str]) -> None:
    """Names of objects and instances, wherever one object speaks of another."""
    if isinstance(value, list):
        for inner in value:
            _replace(inner, names, instances)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "name" and inner in names:
                value[key] = names[inner]
            elif key == INSTANCE and inner in instances:
                value[key] = instances[inner]
            elif key != "data":
                _replace(inner, names, instances)


def _rehash(objects: list[Object]) -> None:
    """A ConfigMap with a hash in its name gets that of its content: pods follow a change."""
    names = {}
    for item in objects:
        name = item["metadata"]["name"]
        if item["kind"] == "ConfigMap" and HASH.search(name):
            digest = hashlib.sha256(json.dumps(item["data"], sort_keys=True).encode()).hexdigest()
            names[name] = HASH.sub(f"-{digest[:10]}", name)
    for item in objects:
        _replace(item, names, {})


def _check(item: Object) -> None:
    if item["apiVersion"] != KINDS[item["kind"]]:
        raise ManifestError(
            f"{title(item)} is {item['apiVersion']}; write it as {KINDS[item['kind']]}"
        )
    if item["kind"] in RAY_KINDS:
        check_name(f"{title(item)}: its name", item["metadata"]["name"])

"""The operator's options applied to the manifests as data. Nothing is sent here.

docs/kubernetes.md has the table of what lies where.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shlex
from collections.abc import Sequence

from deploy.operator.endpoint_edits import edit_endpoint
from deploy.operator.errors import ManifestError
from deploy.operator.job_edits import edit_job
from deploy.operator.objects import (
    COMPONENT_KINDS,
    INSTANCE_LABEL,
    JOB_KINDS,
    MANAGED_BY_LABEL,
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
from deploy.operator.options import DeployOptions, check_name

HASH = re.compile(r"-[a-z0-9]{10}$")
BLANKS = re.compile(r"\b(ACCOUNT|BUCKET|CLUSTER-QUEUE|OWNER|REGION)\b")
RAY_KINDS = ("RayJob", "RayService")
RUN_OPTION = {"trainer": "--run", "campaign": "--name"}


def edit_manifests(
    manifests: Sequence[Object], component: Component, options: DeployOptions
) -> list[Object]:
    """The objects of a component with the options, ours by their labels.

    Raises:
        UserError: an option cannot be had; the message has the rule and the next move.
    """
    objects = copy.deepcopy(list(manifests))
    if options.name is not None:
        _rename(objects, component, options.name)
    if options.image is not None:
        for container in containers(workload(objects)):
            container["image"] = options.image
    if options.storage is not None:
        config_map(objects, "environment")["data"]["AALNET_STORAGE"] = options.storage
    if workload(objects)["kind"] in JOB_KINDS:
        edit_job(objects, component, options)
    else:
        edit_endpoint(objects, options)
    for item in objects:
        item["metadata"].setdefault("labels", {})[MANAGED_BY_LABEL] = MANAGER
        if options.namespace is not None:
            item["metadata"]["namespace"] = options.namespace
    _rehash(objects)
    for item in objects:
        _check(item)
    return objects


def blanks(objects: Sequence[Object]) -> list[str]:
    """What still stands in CAPITALS for the user to fill in, one line each."""
    return [
        f"{title(item)} {path}: {blank[0]} in `{value.strip()[:80]}`"
        for item in objects
        for path, value in leaves(item)
        if isinstance(value, str) and (blank := BLANKS.search(value))
    ]


def _rename(objects: list[Object], component: Component, name: str) -> None:
    job = workload(objects)
    old = job["metadata"].get("labels", {}).get(INSTANCE_LABEL, default_name(component))
    names = {
        item["metadata"]["name"]: name + item["metadata"]["name"].removeprefix(old)
        for item in objects
        if item["metadata"]["name"].startswith(old)
    }
    for item in objects:
        _replace(item, names, {old: name})
    if job["kind"] in JOB_KINDS:
        option, words = RUN_OPTION[component], shlex.split(job["spec"]["entrypoint"])
        if option not in words[:-1]:
            raise ManifestError(f"{title(job)}: its entrypoint has no {option}; add it")
        words[words.index(option) + 1] = name
        job["spec"]["entrypoint"] = shlex.join(words)


def _replace(value: object, names: dict[str, str], instances: dict[str, str]) -> None:
    """Names of objects and instances, wherever one object speaks of another."""
    if isinstance(value, list):
        for inner in value:
            _replace(inner, names, instances)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "name" and inner in names:
                value[key] = names[inner]
            elif key == INSTANCE_LABEL and inner in instances:
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
    api_version = COMPONENT_KINDS[item["kind"]]
    if item["apiVersion"] != api_version:
        raise ManifestError(f"{title(item)} is {item['apiVersion']}; write it as {api_version}")
    if item["kind"] in RAY_KINDS:
        check_name(f"{title(item)}: its name", item["metadata"]["name"])

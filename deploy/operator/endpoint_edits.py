"""Edits of the endpoint, on a Deployment or on Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from aalnet.yaml_io import apply_overrides, parse_mapping
from deploy.endpoint.settings import parse_endpoint_settings
from deploy.operator.errors import ManifestError
from deploy.operator.objects import Object, title, worker_group, workload
from deploy.operator.options import DeployOptions, worker_range


def edit_endpoint(objects: list[Object], options: DeployOptions) -> None:
    """Set the model, settings, storage and number of pods in place.

    Raises:
        UserError: a setting is wrong, or cannot be had here.
    """
    if options.config is not None:
        raise ManifestError("--config is for trainer and campaign; the endpoint takes --set")
    parse_endpoint_settings(apply_overrides({}, options.settings))
    server = workload(objects)
    if server["kind"] == "Deployment":
        _on_deployment(objects, server, options)
    else:
        _on_serve(server, options)


def _on_deployment(objects: list[Object], deployment: Object, options: DeployOptions) -> None:
    args: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    if options.model is not None:
        places = [i for i, word in enumerate(args) if word.startswith("--model=")]
        if len(places) != 1:
            raise ManifestError(f"{title(deployment)}: its args have no --model=NAME; add it")
        args[places[0]] = f"--model={options.model}"
    args += [f"--set={setting}" for setting in options.settings]
    if options.workers is None:
        return
    least, most = worker_range(options.workers)
    scalers = [item for item in objects if item["kind"] == "HorizontalPodAutoscaler"]
    for scaler in scalers:
        scaler["spec"] |= {"minReplicas": least, "maxReplicas": most}
    if not scalers:
        deployment["spec"]["replicas"] = _one_number(least, most, "without an autoscaler")


def _on_serve(service: Object, options: DeployOptions) -> None:
    config = parse_mapping(service["spec"]["serveConfigV2"], f"{title(service)} serveConfigV2")
    application: dict[str, Any] = config["applications"][0]
    args: dict[str, Any] = application["args"]
    if options.model is not None:
        args["model"] = options.model
    if options.storage is not None:
        args["storage"] = options.storage
    if options.settings:
        args["settings"] = _joined(options.settings)
    if options.workers is not None:
        pods = _one_number(*worker_range(options.workers), "on Ray Serve")
        worker_group(service).update(replicas=pods, minReplicas=pods, maxReplicas=pods)
        application["deployments"][0]["num_replicas"] = pods
    if config != yaml.safe_load(service["spec"]["serveConfigV2"]):  # else as its author wrote it
        service["spec"]["serveConfigV2"] = yaml.safe_dump(config, sort_keys=False)


def _one_number(least: int, most: int, where: str) -> int:
    if least != most:
        raise ManifestError(f"--workers must be one number {where}, got {least}:{most}")
    return most


def _joined(settings: Sequence[str]) -> str:
    if with_comma := [setting for setting in settings if "," in setting]:
        raise ManifestError(
            f"--set {with_comma[0]}: a comma divides settings on Ray Serve; leave it out"
        )
    return ",".join(settings)

"""Edits of a run's or a campaign's RayJob: its settings, and the workers that they count on."""

from __future__ import annotations

from typing import Any

import yaml

from aalnet.errors import ConfigError
from aalnet.settings import parse_settings
from aalnet.yaml_io import apply_overrides, parse_mapping, read_mapping
from deploy.operator.errors import ManifestError
from deploy.operator.objects import (
    Component,
    Object,
    config_map,
    ray_cluster_spec,
    title,
    worker_group,
    workload,
)
from deploy.operator.options import DeployOptions, worker_range
from tuner.settings import measured, parse_campaign, read_campaign

SETTINGS_KEY = {"trainer": "run.yaml", "campaign": "campaign.yaml"}
ALL_ADDRESSES = "0.0.0.0"  # Prometheus comes from another pod


def edit_job(objects: list[Object], component: Component, options: DeployOptions) -> None:
    """Set settings and workers in place; they agree afterwards.

    Raises:
        UserError: a setting is wrong, or the workers do not fit it.
    """
    if options.model is not None:
        raise ManifestError("--model is the endpoint's; the kind of model is --set model=gan")
    if options.config is None and not options.settings and options.workers is None:
        return
    settings, key = config_map(objects, "settings"), SETTINGS_KEY[component]
    if key not in settings["data"]:
        raise ManifestError(f"{title(settings)} has no {key}; see docs/kubernetes.md")
    if options.config is None:
        values = parse_mapping(settings["data"][key], title(settings))
    elif component == "trainer":
        values = read_mapping(options.config)
    else:
        values = read_campaign(options.config)
    values = apply_overrides(values, options.settings)
    group = worker_group(workload(objects))
    agree = _agree_on_run if component == "trainer" else _agree_on_campaign
    least, most = agree(values, group, options.workers)
    # Without the autoscaler, as under Kueue, the number of pods is the largest from the start.
    scaled = ray_cluster_spec(workload(objects)).get("enableInTreeAutoscaling", False)
    least = least if scaled else most
    group |= {"replicas": least, "minReplicas": least, "maxReplicas": most}
    settings["data"][key] = yaml.safe_dump(values, sort_keys=False)


def _agree_on_run(values: dict[str, Any], group: Object, workers: str | None) -> tuple[int, int]:
    """Set the workers of a run's settings; gives the fewest and the most pods."""
    run = _section(values, "run")
    if workers is not None or run.get("workers", "auto") == "auto":
        least, most = (group["minReplicas"], group["maxReplicas"])
        if workers is not None:
            least, most = worker_range(workers)
        run["workers"] = most if least == most else f"{least}:{most}"
    _section(values, "telemetry").setdefault("host", ALL_ADDRESSES)
    pods = parse_settings(values).run.worker_range
    assert pods is not None, "`auto` was replaced above"
    if pods == (0, 0):
        raise ConfigError(
            "run.workers 0 trains in the driver's process, on the head, which has no GPU; give "
            "--workers 1"
        )
    return pods


def _agree_on_campaign(
    values: dict[str, Any], group: Object, workers: str | None
) -> tuple[int, int]:
    """Set the trials at once of a campaign; gives the fewest and the most pods."""
    _section(_section(values, "base"), "telemetry").setdefault("host", ALL_ADDRESSES)
    per_trial = values.get("workers", 1)
    if not isinstance(per_trial, int):
        raise ConfigError(f"workers must be a whole number, got {per_trial!r}")
    if workers is not None:
        least, most = worker_range(workers)
        if most < per_trial:
            raise ConfigError(
                f"--workers {workers} cannot hold one trial of {per_trial} workers; give at least "
                f"{per_trial}"
            )
        values["trials_at_once"] = most // per_trial
    else:
        at_once = values.get("trials_at_once", "auto")
        most = at_once * per_trial if isinstance(at_once, int) else group["maxReplicas"]
        least = min(group["minReplicas"], most)
    measured(parse_campaign(values))
    return least, most


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    if values.get(name) is None:
        values[name] = {}
    section = values[name]
    if not isinstance(section, dict):
        raise ConfigError(f"{name} must be a group of settings, got {section!r}")
    return section

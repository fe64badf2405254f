"""Changes to a run's or a campaign's RayJob: its settings, and the workers that they count on."""

from __future__ import annotations

from typing import Any

import yaml

from aalnet.errors import ConfigError
from aalnet.settings import parse_settings
from aalnet.yaml_io import apply_overrides, parse_mapping, read_mapping
from deploy.operator.arguments import Changes, worker_range
from deploy.operator.errors import ManifestError
from deploy.operator.objects import (
    Component,
    Object,
    cluster_of,
    config_map,
    title,
    worker_group,
    workload,
)
from tuner.settings import parse_campaign, read_campaign

KEY = {"trainer": "run.yaml", "campaign": "campaign.yaml"}
ALL_ADDRESSES = "0.0.0.0"  # Prometheus comes from another pod


def apply(objects: list[Object], component: Component, asked: Changes) -> None:
    """Set settings and workers in place; they agree afterwards.

    Raises:
        UserError: a setting is wrong, or the workers do not fit it.
    """
    if asked.model is not None:
        raise ManifestError("--model is the endpoint's; the kind of model is --set model=gan")
    if asked.config is None and not asked.settings and asked.workers is None:
        return
    kept = config_map(objects, "settings")
    if KEY[component] not in kept["data"]:
        raise ManifestError(f"{title(kept)} has no {KEY[component]}; see docs/kubernetes.md")
    text = kept["data"][KEY[component]]
    if asked.config is None:
        values = parse_mapping(text, title(kept))
    else:
        values = (
            read_mapping(asked.config) if component == "trainer" else read_campaign(asked.config)
        )
    values = apply_overrides(values, asked.settings)
    group, fixed = worker_group(workload(objects)), _is_fixed(workload(objects))
    if component == "trainer":
        _agree_on_run(values, group, asked.workers, fixed=fixed)
        parse_settings(values)
    else:
        _agree_on_campaign(values, group, asked.workers, fixed=fixed)
        parse_campaign(values)
    kept["data"][KEY[component]] = yaml.safe_dump(values, sort_keys=False)


def _agree_on_run(
    values: dict[str, Any], group: Object, workers: str | None, *, fixed: bool
) -> None:
    run = _section(values, "run")
    if workers is not None:
        run["workers"] = _written(*worker_range(workers))
    elif run.get("workers", "auto") == "auto":
        run["workers"] = _written(group["minReplicas"], group["maxReplicas"])
    _section(values, "telemetry").setdefault("host", ALL_ADDRESSES)
    found = parse_settings(values).run.worker_range
    assert found is not None, "`auto` was replaced above"
    if found == (0, 0):
        raise ConfigError(
            "run.workers 0 trains in the driver's process, on the head, which has no GPU; give "
            "--workers 1"
        )
    _scale(group, *found, fixed=fixed)


def _agree_on_campaign(
    values: dict[str, Any], group: Object, workers: str | None, *, fixed: bool
) -> None:
    _section(_section(values, "base"), "telemetry").setdefault("host", ALL_ADDRESSES)
    each = values.get("workers", 1)
    if not isinstance(each, int):
        raise ConfigError(f"workers must be a whole number, got {each!r}")
    if workers is not None:
        least, most = worker_range(workers)
        if most < each:
            raise ConfigError(
                f"--workers {workers} cannot hold one trial of {each} workers; give at least {each}"
            )
        values["trials_at_once"] = most // each
    else:
        at_once = values.get("trials_at_once", "auto")
        most = at_once * each if isinstance(at_once, int) else group["maxReplicas"]
        least = min(group["minReplicas"], most)
    _scale(group, least, most, fixed=fixed)


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    if values.get(name) is None:
        values[name] = {}
    section = values[name]
    if not isinstance(section, dict):
        raise ConfigError(f"{name} must be a group of settings, got {section!r}")
    return section


def _written(least: int, most: int) -> int | str:
    return most if least == most else f"{least}:{most}"


def _is_fixed(job: Object) -> bool:
    """Without the autoscaler, as under Kueue, the number of pods is the largest from the start."""
    return not (cluster_of(job) or {}).get("enableInTreeAutoscaling", False)


def _scale(group: Object, least: int, most: int, *, fixed: bool) -> None:
    least = most if fixed else least
    group |= {"replicas": least, "minReplicas": least, "maxReplicas": most}

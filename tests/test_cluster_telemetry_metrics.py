"""The catalogue of metrics, and a run's log as metrics."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aalnet.settings import Settings
from cluster.runs.run import Record
from cluster.telemetry.catalogue import CATALOGUE, LABEL_VALUES, markdown, series_names
from cluster.telemetry.log_metrics import NAMES, LogMetrics
from cluster.telemetry.metrics import RunMetrics, build
from tests.support.metric_samples import LOG, values_of
from tests.support.prometheus_server import configured, rules
from tests.support.tiny_runs import tiny_settings, write_data

FREE = {"run", "campaign", "worker", "images", "digest"}  # labels whose values are names


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(write_data(tmp_path_factory.mktemp("data")))


# The catalogue


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=CATALOGUE)
def test_names_keep_prometheus_conventions(metric: Any) -> None:
    assert re.fullmatch(r"aalnet_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent|s)$", metric.name)
    assert metric.help.endswith((".", ".)"))
    assert set(metric.labels) <= set(LABEL_VALUES) | FREE
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_every_label_with_a_list_is_used() -> None:
    used = {label for metric in CATALOGUE.values() for label in metric.labels}
    assert set(LABEL_VALUES) <= used


def test_the_page_is_what_the_code_says(repo_root: Path) -> None:
    page = (repo_root / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page.rstrip().endswith(markdown()), "python -m cluster.telemetry.catalogue"


def test_promtool_finds_nothing_wrong() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    text = one_of_each()
    assert {family.name for family in text_string_to_metric_families(text)} == {
        name.removesuffix("_total") for name in CATALOGUE
    }
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def one_of_each() -> str:
    """One series of each metric of the catalogue, as it is scraped."""
    registry = CollectorRegistry()
    for spec in CATALOGUE.values():
        metric = build(spec.name, registry)
        if spec.labels:
            metric.labels(*"x" * len(spec.labels))
    return generate_latest(registry).decode()


def test_the_documented_configuration_and_the_rules_are_good(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    config = configured(tmp_path / "prometheus", tmp_path / "cache", 5.0, rules())
    result = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert result.returncode == 0, result
    assert "1 rule files found" in result.stdout


def test_series_names_are_those_that_prometheus_stores() -> None:
    stored = {line.partition("{")[0].partition(" ")[0] for line in one_of_each().splitlines()
              if not line.startswith("#")}  # fmt: skip
    assert stored == series_names(CATALOGUE.values())


# A run's log as metrics


def after(settings: Settings, log: list[Record], *, past: bool = False) -> RunMetrics:
    metrics = RunMetrics(run="a", worker="0")
    from_log = LogMetrics(metrics, settings)
    for record in log:
        from_log.add(record, past=past)
    return metrics


def test_a_log_becomes_metrics(settings: Settings) -> None:
    found = values_of(after(settings, LOG).samples())
    wanted = {
        ("aalnet_run_images", ("a",)): 16, ("aalnet_restarts_total", ("a", "crash")): 1,
        ("aalnet_restarts_total", ("a", "storage")): 0, ("aalnet_lost_images_total", ("a",)): 12,
        ("aalnet_term", ("a", "entropy")): 0.5, ("aalnet_learning_rate", ("a",)): 0.1,
        ("aalnet_discriminator_accuracy_ratio", ("a", "pairs")): 0.6,
        ("aalnet_discriminator_accuracy_ratio", ("a", "real")): 0.9,
        ("aalnet_discriminator_accuracy_ratio", ("a", "generated")): 0.7,
        ("aalnet_gradient_norm", ("a", "generator")): 3,
        ("aalnet_evaluation_figure", ("a", "kid_unpaired_lite0")): 0.2,
        ("aalnet_evaluation_floor", ("a", "kid_unpaired_lite0")): 0.6,
        ("aalnet_evaluation_figure", ("a", "diversity")): 0.1,
        ("aalnet_ema_distance_ratio", ("a",)): 0.01, ("aalnet_checkpoints_total", ("a",)): 1,
        ("aalnet_checkpoint_timestamp_seconds", ("a",)): 115,
        ("aalnet_checkpoint_written_bytes_total", ("a",)): 1000,
        ("aalnet_warnings_total", ("a",)): 1, ("aalnet_non_finite_total", ("a",)): 1,
        ("aalnet_run_seconds", ("a", "lost work")): 3, ("aalnet_run_seconds", ("a", "step")): 8,
    }  # fmt: skip
    assert {key: found.get(key) for key in wanted} == wanted
    assert ("aalnet_term", ("a", "generator_norm")) not in found
    step_s, all_s = 8.0, 7.0 + 3.0 + 17.0
    assert found["aalnet_goodput_ratio", ("a",)] == pytest.approx(step_s / all_s)


def test_earlier_starts_count_once_and_no_counter_begins_anew_with_them(settings: Settings) -> None:
    start: Record = {"kind": "start", "images": 16, "time_s": 120.0, "recovery_s": 1.0,
                     "cause": "driver", "lost_images": 4}  # fmt: skip
    metrics = RunMetrics(run="a", worker="0")
    from_log = LogMetrics(metrics, settings)
    for record in LOG:
        from_log.add(record, past=True)
    from_log.add(start)
    found = values_of(metrics.samples())
    assert found["aalnet_restarts_total", ("a", "crash")] == 1
    assert found["aalnet_restarts_total", ("a", "driver")] == 1
    assert found["aalnet_lost_images_total", ("a",)] == 16
    assert found["aalnet_checkpoints_total", ("a",)] == 0  # of this process
    assert found["aalnet_non_finite_total", ("a",)] == 0
    assert found["aalnet_evaluation_figure", ("a", "kid_unpaired_lite0")] == 0.2
    assert found["aalnet_checkpoint_timestamp_seconds", ("a",)] == 115
    assert not any(name.endswith("_count") for name, _ in found)
    assert from_log.status == "running"


def test_a_damaged_log_makes_a_bounded_number_of_series(settings: Settings) -> None:
    metrics = RunMetrics(run="a", worker="0")
    from_log = LogMetrics(metrics, settings)
    for i in range(3 * NAMES):
        from_log.add({"kind": "start", "images": 1, "time_s": 1.0, "cause": f"cause-{i}"})
        from_log.add({"kind": "evaluation", "images": 1, f"kid_{i}": 1.0, "seconds": 1.0})
        from_log.add({"kind": "train", "images": 1, "lr": 1.0, "terms": {f"term-{i}": 1.0}})
    from_log.add({"kind": "train", "images": 1, "lr": 1.0, "terms": {"term-0": 2.0}})
    assert sum(map(len, metrics.samples().values())) < 2 * NAMES
    assert values_of(metrics.samples())["aalnet_term", ("a", "term-0")] == 2.0


@pytest.mark.parametrize("value", ["x", None, []])
def test_what_is_no_number_makes_no_series(value: Any) -> None:
    metrics = RunMetrics(run="a", worker="0")
    for act in (metrics.set, metrics.count, metrics.observe):
        with pytest.raises((TypeError, ValueError)):
            act("aalnet_learning_rate", value)
    assert metrics.samples() == {}

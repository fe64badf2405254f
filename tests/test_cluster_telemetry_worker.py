"""What a worker sends of itself and its GPU, and what the driver makes of it."""

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from aalnet.settings import Settings
from cluster.telemetry import run_metrics
from cluster.telemetry.gpu import measure_gpu
from cluster.telemetry.metrics import RunMetrics
from cluster.telemetry.run_metrics import STATES, RunCollector
from cluster.telemetry.worker import WorkerTelemetry
from tests.support.metric_samples import Values, values_of
from tests.support.tiny_runs import tiny_settings, write_data


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(write_data(tmp_path_factory.mktemp("data")))


# What a worker sends


def worker(
    settings: Settings, publish: Callable[[Any], None] | None
) -> tuple[WorkerTelemetry, list[str]]:
    warnings: list[str] = []
    return WorkerTelemetry("a", settings, 0, publish, warnings.append), warnings


def test_a_damaged_log_is_warned_of_once(settings: Settings) -> None:
    telemetry, warnings = worker(settings, None)
    telemetry.add_past([{"kind": "train", "images": 1}, {"kind": "train", "images": 2, "lr": "x"}])
    telemetry.add_record({"kind": "checkpoint", "images": 1})
    assert len(warnings) == 1
    assert warnings[0].startswith("metrics are incomplete: KeyError")


def test_a_worker_whose_messages_nobody_takes_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.telemetry.worker.PUBLISH_S", 0.01)
    tries: list[Any] = []

    def publish(message: Any) -> None:
        tries.append(message)
        raise OSError(28, "No space left on device")

    telemetry, warnings = worker(settings, publish)
    telemetry.start()
    while len(tries) < 3:
        telemetry.add_step(4, 0.1, 0.01, 0.0)
    telemetry.close()
    assert warnings == ["metrics are incomplete: OSError: [Errno 28] No space left on device"]
    assert tries[-1]["samples"]


def test_without_publishing_there_is_no_thread(settings: Settings) -> None:
    before = threading.active_count()
    telemetry, _ = worker(settings, None)
    telemetry.start()
    assert threading.active_count() == before
    telemetry.close()


def test_messages_are_plain_data(settings: Settings) -> None:
    messages: list[Any] = []
    telemetry, _ = worker(settings, messages.append)
    telemetry.start()
    telemetry.add_step(4, 0.1, 0.01, 0.0)
    telemetry.close()
    assert json.loads(json.dumps(messages[-1])) == messages[-1]
    assert messages[-1]["status"] == "starting"


def test_polled_values_are_those_of_the_moment(settings: Settings) -> None:
    telemetry, _ = worker(settings, None)
    failures = iter([2, 5])
    telemetry.poll("aalnet_checkpoint_failures_total", lambda: next(failures))
    for total in (2, 5):
        found = values_of(telemetry.message()["samples"])
        assert found["aalnet_checkpoint_failures_total", ("a",)] == total


# A worker's GPU, against a stand-in of torch.cuda


def test_a_gpu_is_told_of_also_where_nvml_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in {
        "is_initialized": True, "mem_get_info": (1000, 4000), "memory_allocated": 500,
        "memory_reserved": 700, "utilization": 60,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    metrics = RunMetrics(run="a", worker="1")
    measure_gpu(metrics)
    memory = {"allocated": 500, "reserved": 700, "used": 3000, "total": 4000}
    wanted = {("aalnet_gpu_memory_bytes", ("a", "1", kind)): size for kind, size in memory.items()}
    assert values_of(metrics.samples()) == wanted | {("aalnet_gpu_busy_ratio", ("a", "1")): 0.6}

    class NVMLError(Exception):
        """As NVML's own: with MIG there is no such figure."""

    def silent() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    metrics = RunMetrics(run="a", worker="1")
    measure_gpu(metrics)
    assert values_of(metrics.samples()) == wanted


# The driver's side


def message(status: str = "running", **values: float) -> dict[str, Any]:
    """A message with these metrics, which have no label but the run."""
    samples = {name.removesuffix("_total"): [[name, {"run": "a"}, value]]
               for name, value in values.items()}  # fmt: skip
    return {"at_s": next(clock), "status": status, "samples": samples}


clock = itertools.count()


def collected(collector: Collector) -> Values:
    return values_of({family.name: [sample[:3] for sample in family.samples]
                      for family in collector.collect()})  # fmt: skip


def state_of(collector: RunCollector) -> tuple[str, float, set[str]]:
    found = collected(collector)
    state = [s for s in STATES if found["aalnet_run_state", ("a", s)] == 1]
    assert len(state) == 1
    return state[0], found["aalnet_workers", ("a",)], {name for name, _ in found}


def test_states_of_a_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(run_metrics.time, "monotonic", lambda: now_s)
    collector = RunCollector("a", settings, "cpu", 2)
    assert state_of(collector)[:2] == ("starting", 0)
    collector.take(0, message(aalnet_steps_total=1))
    collector.take(1, message(aalnet_learning_rate=1))  # stands for what is a worker's own
    state, workers, names = state_of(collector)
    assert (state, workers, "aalnet_learning_rate" in names) == ("running", 2, True)
    now_s += run_metrics.FRESH_S + 1  # both died
    state, workers, names = state_of(collector)
    assert (state, workers) == ("recovering", 0)
    assert "aalnet_steps_total" in names
    assert "aalnet_learning_rate" not in names
    collector.take(0, message())
    assert state_of(collector)[:2] == ("running", 1)
    collector.take(0, message("finished"))
    assert state_of(collector)[0] == "finished"


def test_workers_are_scraped_as_one_family(settings: Settings) -> None:
    """As Prometheus wants it; and nothing is said of what nobody measures."""
    collector = RunCollector("a", settings, "cpu", 2)
    for rank in (0, 1):
        telemetry = WorkerTelemetry("a", settings, rank, None, pytest.fail)
        for _ in range(rank + 1):
            telemetry.add_step(4, 0.03, 0.01, 0.0)
        collector.take(rank, json.loads(json.dumps(telemetry.message())))
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    assert text.count("# TYPE aalnet_step_seconds histogram") == 1
    counts = [line for line in text.splitlines() if line.startswith("aalnet_step_seconds_count")]
    assert [line.partition("worker=")[2] for line in counts] == ['"0"} 1.0', '"1"} 2.0']
    assert 'aalnet_step_seconds_bucket{le="0.05",run="a",worker="1"} 2.0' in text
    assert 'aalnet_steps_total{run="a"} 1.0' in text
    assert "aalnet_gpu" not in text
    assert "_created" not in text


def test_a_message_that_is_read_again_is_no_sign_of_life(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, same = 1000.0, message()
    monkeypatch.setattr(run_metrics.time, "monotonic", lambda: now_s)
    collector = RunCollector("a", settings, "cpu", 1)
    for _ in range(10):
        collector.take(0, same)
        now_s += 2
    assert state_of(collector)[0] == "recovering"

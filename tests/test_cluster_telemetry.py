"""The catalogue, a run's log as metrics, what workers send, and who serves it."""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from aalnet.errors import NonFiniteError
from aalnet.settings import Settings, TelemetrySettings
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.telemetry import board, exporter, run_metrics
from cluster.telemetry.catalogue import CATALOGUE, LABEL_VALUES, markdown, series_names
from cluster.telemetry.exporter import ScrapeTimes, serve
from cluster.telemetry.gpu import measure_gpu
from cluster.telemetry.log_metrics import NAMES, LogMetrics
from cluster.telemetry.metrics import RunMetrics, build
from cluster.telemetry.run_metrics import STATES, RunCollector
from cluster.telemetry.targets import Target, announced, targets_folder
from cluster.telemetry.worker import WorkerTelemetry
from cluster.training import loop
from cluster.training.recorder import Launch
from cluster.training.stop import Stop
from cluster.training.world import ProcessWorld
from tests.support.prometheus_server import configured, rules
from tests.support.tiny_runs import tiny_settings, write_data

FREE = {"run", "campaign", "worker", "images", "digest"}  # labels whose values are names
AS_PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "5"}
Values = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(write_data(tmp_path_factory.mktemp("data")))


def values_of(samples: dict[str, Any]) -> Values:
    """By name and the labels' values, in the catalogue's order; without buckets."""
    return {
        (name, tuple(labels[label] for label in metric.labels)): value
        for family in samples.values()
        for name, labels, value in family
        if "le" not in labels
        for metric in [CATALOGUE[name] if name in CATALOGUE else CATALOGUE[name.rpartition("_")[0]]]
    }


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

LOG: list[Record] = [
    {"kind": "start", "images": 8, "time_s": 100.0, "recovery_s": 7.0, "lost_s": 3.0,
     "lost_images": 12, "cause": "crash", "workers": 2},
    {"kind": "train", "images": 16, "time_s": 110.0, "lr": 0.1, "step_s": 2.0, "data_s": 0.5,
     "images_per_s": 9.0, "terms": {"entropy": 0.5, "real_accuracy": 0.9, "fake_accuracy": 0.7,
                                    "discriminator_accuracy": 0.6, "generator_norm": 3.0}},
    {"kind": "evaluation", "images": 16, "time_s": 114.0, "kid_lite0": 0.2, "diversity": 0.1,
     "kid_lite0_condition": 0.6, "seconds": 4.0, "ema_distance": 0.01},
    {"kind": "checkpoint", "images": 16, "time_s": 115.0, "bytes": 1000, "seconds": 2.0,
     "stall_s": 0.125},
    {"kind": "warning", "images": 16, "time_s": 116.0, "text": "hm"},
    {"kind": "end", "images": 16, "time_s": 117.0, "status": "failed", "cause": "non_finite"},
]  # fmt: skip


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
        ("aalnet_evaluation_figure", ("a", "kid_lite0")): 0.2,
        ("aalnet_evaluation_floor", ("a", "kid_lite0")): 0.6,
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
    assert found["aalnet_evaluation_figure", ("a", "kid_lite0")] == 0.2
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


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class OneStep(Collector):
    """A collector of one counter."""

    def collect(self) -> Iterator[Any]:
        metrics = RunMetrics(run="a")
        metrics.count("aalnet_steps_total")
        yield from (family for family in metrics.registry.collect() if family.samples)


def serving(
    warnings: list[str], instance: str = "run/a", **telemetry: Any
) -> contextlib.AbstractContextManager[int | None]:
    settings = TelemetrySettings(**{"port": 0} | telemetry)
    return serve(instance, settings, OneStep(), warnings.append)


def scrape(port: int | None, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_a_taken_port_is_warned_of_once(taken_port: int) -> None:
    warned: list[str] = []
    with serving(warned, port=taken_port) as port:
        assert port is None
    assert len(warned) == 1
    assert "Address already in use" in warned[0]
    assert "telemetry.port" in warned[0]


def test_auto_takes_a_free_port_where_the_usual_one_is_taken(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PORT", taken_port)
    warned: list[str] = []
    with serving(warned, port="auto") as port:
        assert port not in {None, taken_port}
        assert "aalnet_steps_total" in scrape(port)
    assert warned == []


def test_port_0_serves_nothing() -> None:
    before = threading.active_count()
    with serving([]) as port:
        assert port is None
        assert threading.active_count() == before
    assert not targets_folder().exists()


def test_a_run_is_announced_while_it_lasts() -> None:
    with serving([], port="auto") as port:
        (path,) = targets_folder().glob("*.json")
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        assert entry["targets"] == [f"127.0.0.1:{port}"]
        assert entry["labels"]["instance"] == "run/a"
        assert entry["labels"]["__pid"] == str(os.getpid())
    assert list(targets_folder().iterdir()) == []


def test_a_scrape_that_is_meant_for_another_run_gets_nothing() -> None:
    """As where a run takes the port of one that ended, before Prometheus has seen the end."""
    with serving([], port="auto") as port:
        (path,) = targets_folder().glob("*.json")
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        assert entry["labels"]["__param_instance"] == "run/a"
        address = f"http://127.0.0.1:{port}/metrics?instance="
        with urllib.request.urlopen(f"{address}run%2Fa") as answer:
            assert b"aalnet_steps_total" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}run%2Fb")


def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    warned: list[str] = []
    with serving(warned, port="auto") as port:
        assert "aalnet_steps_total" in scrape(port)
    assert len(warned) == 1
    assert "Prometheus will not find" in warned[0]


def test_files_of_the_dead_are_swept_and_hostile_ones_are_left() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    folder = targets_folder()
    folder.mkdir(parents=True)
    entry = {
        "targets": ["127.0.0.1:1"],
        "labels": {"instance": "run/dead", "__pid": str(child.pid)},
    }
    (folder / "dead.json").write_text(json.dumps([entry]))
    (folder / "odd.json").write_text('{"targets": 3}')
    (folder / "cut.json").write_bytes(b'[{"targets": ["\xff')
    with announced(Target("run/a", "0.0.0.0", 9464, os.getpid()), pytest.fail):
        assert sorted(path.name for path in folder.iterdir()) == [
            "cut.json", "odd.json", f"run-a-{os.getpid()}.json",
        ]  # fmt: skip
        (entry,) = json.loads((folder / f"run-a-{os.getpid()}.json").read_text())
        assert entry["targets"] == ["127.0.0.1:9464"]


@pytest.fixture
def scrapes(monkeypatch: pytest.MonkeyPatch) -> ScrapeTimes:
    """Those that `serve` notes."""
    found = ScrapeTimes()
    monkeypatch.setattr(exporter, "ScrapeTimes", lambda: found)
    return found


def test_the_end_waits_for_one_more_scrape_where_somebody_scrapes(scrapes: ScrapeTimes) -> None:
    done = threading.Event()

    def look(port: int | None) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while not done.wait(0.2):
                scrape(port, **AS_PROMETHEUS)

    with serving([], port="auto") as port:
        looking = threading.Thread(target=look, args=(port,))
        looking.start()
        time.sleep(1)
        before = scrapes.at_s[-1]
        ended_s = time.monotonic()
    assert scrapes.at_s[-1] > before
    assert time.monotonic() - ended_s < 3
    done.set()
    with pytest.raises(OSError, match="refused"):
        scrape(port)
    looking.join(timeout=5)


def test_the_end_waits_for_nobody_else(
    scrapes: ScrapeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(*_: Any) -> None:
        pytest.fail("nobody is to be waited for")

    monkeypatch.setattr(threading.Condition, "wait_for", waits)
    with serving([], port="auto"):
        pass
    with serving([], port="auto") as port:
        scrape(port, **AS_PROMETHEUS)  # once: nobody knows when again
    scrapes.at_s.clear()
    with serving([], port="auto") as port:
        for _ in range(3):
            scrape(port)  # a person's look
    with contextlib.suppress(KeyboardInterrupt), serving([], port="auto") as port:
        for _ in range(3):
            scrape(port, **AS_PROMETHEUS)
        raise KeyboardInterrupt
    with serving([], port="auto"):  # a Prometheus that has gone
        scrapes.at_s.extend([time.monotonic() - 30, time.monotonic() - 25])


def test_a_hundred_runs_leave_nothing_behind() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def one(number: int) -> bool:
        with serving([], f"run/{number}", port="auto") as port:
            return 'aalnet_steps_total{run="a"} 1.0' in scrape(port)

    with ThreadPoolExecutor(25) as pool:
        assert all(pool.map(one, range(100)))
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert list(targets_folder().iterdir()) == []


# Training goes on


def train(settings: Settings, folder: Path, **telemetry: Any) -> Run:
    run = Run(FolderStore(folder), "a")
    changed = settings.model_copy(update={"telemetry": TelemetrySettings(**telemetry)})
    run.claim(changed)
    assert launcher.train_here(run, changed, Placement(0, "cpu", "here"), Stop()) == "finished"
    return run


def test_training_goes_on_where_the_port_is_taken(
    settings: Settings, tmp_path: Path, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(settings, tmp_path / "store", port=taken_port)
    assert run.records()[-1]["status"] == "finished"
    assert capsys.readouterr().err.count("no metrics are served") == 1


def test_training_goes_on_where_nothing_can_be_announced(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("")
    run = train(settings, tmp_path / "store")
    assert run.records()[-1]["status"] == "finished"
    assert capsys.readouterr().err.count("will not find the metrics") == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a disk of 64 KiB over a folder, and fills it but for a few bytes."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs (root)")
        mounted.append(folder)
        with pytest.raises(OSError, match="No space left"):
            (folder / "full").write_bytes(bytes(2**20))

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_training_goes_on_where_the_cache_is_on_a_full_disk(
    settings: Settings, tmp_path: Path, full_disk: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    full_disk(tmp_path / "cache")
    run = train(settings, tmp_path / "store")
    assert run.records()[-1]["status"] == "finished"
    told = capsys.readouterr().err
    assert told.count("warning") == told.count("No space left") == 1


def test_training_goes_on_where_events_go_to_a_full_disk(
    settings: Settings, tmp_path: Path, full_disk: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(board, "FLUSH_S", 0.05)  # many tries
    full_disk(tmp_path / "store/runs/a/tensorboard")
    run = train(settings, tmp_path / "store", port=0, tensorboard=True)
    warnings = [record["text"] for record in run.records() if record["kind"] == "warning"]
    assert run.records()[-1]["status"] == "finished"
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorBoard's files wait: ")
    assert "No space left" in warnings[0]


def test_training_goes_on_where_events_have_no_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "store/runs/a").mkdir(parents=True)
    (tmp_path / "store/runs/a/tensorboard").write_text("a file where the folder should be")
    run = train(settings, tmp_path / "store", port=0, tensorboard=True)
    assert run.records()[-1]["status"] == "finished"
    assert run.status() == "finished"


def test_telemetry_can_be_off(settings: Settings, tmp_path: Path) -> None:
    train(settings, tmp_path / "store", port=0)
    assert not targets_folder().exists()


def test_telemetry_does_not_move_the_path(settings: Settings, tmp_path: Path) -> None:
    told_of, silent = (
        [record["terms"] for record in train(settings, tmp_path / name, port=port).records()
         if record["kind"] == "train"]
        for name, port in (("told", "auto"), ("silent", 0))
    )  # fmt: skip
    assert told_of == silent


def test_a_nan_is_told_before_the_end(settings: Settings, tmp_path: Path) -> None:
    broken = settings.optimizer.model_copy(update={"lr": 1e30, "warmup_images": 0})
    changed = settings.model_copy(update={"optimizer": broken})
    messages: list[Any] = []
    launch = Launch(time.time(), publish=messages.append)
    run = Run(FolderStore(tmp_path / "store"), "a")
    run.claim(changed)
    with pytest.raises(NonFiniteError):
        loop.train(run, changed, ProcessWorld(), torch.device("cpu"), lambda *figures: None, launch)
    assert run.records()[-1]["cause"] == "non_finite"
    last = values_of(messages[-1]["samples"])
    assert messages[-1]["status"] == "failed"
    assert last["aalnet_non_finite_total", ("a",)] == 1


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

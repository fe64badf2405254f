"""The catalogue, the numbers of a process, a run's log as metrics, and who serves them."""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aalnet.errors import NonFiniteError
from aalnet.settings import Settings, TelemetrySettings
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.telemetry import board, exporter, run_export, targets
from cluster.telemetry.catalogue import CATALOGUE, LABEL_VALUES, markdown, series_names
from cluster.telemetry.exporter import Exporter
from cluster.telemetry.gpu import read_gpu
from cluster.telemetry.records import RecordFigures
from cluster.telemetry.run_export import STATES, RunExport
from cluster.telemetry.tally import SERIES, Tally
from cluster.telemetry.targets import Target, announced, targets_folder
from cluster.telemetry.teller import Teller
from cluster.training import loop
from cluster.training.recorder import Launch
from cluster.training.stop import Stop
from cluster.training.world import ProcessWorld
from tests.support.tiny_runs import tiny_settings, write_data

NAMES = {"run", "campaign", "worker", "images", "digest"}  # labels whose values are names
AS_PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "5"}
Values = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(write_data(tmp_path_factory.mktemp("data")))


def values_of(tally: Tally) -> Values:
    return {(name, tuple(key)): value for name, key, value in tally.snapshot()["values"]}


# The catalogue


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=CATALOGUE)
def test_names_keep_prometheus_conventions(metric: Any) -> None:
    assert re.fullmatch(r"aalnet_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent|s)$", metric.name)
    assert metric.help.endswith((".", ".)"))
    assert set(metric.labels) <= set(LABEL_VALUES) | NAMES
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_every_label_with_a_list_is_used() -> None:
    used = {label for metric in CATALOGUE.values() for label in metric.labels}
    assert set(LABEL_VALUES) <= used


def test_the_page_is_what_the_code_says(repo_root: Path) -> None:
    page = (repo_root / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page.rstrip().endswith(markdown()), "aalnet monitor metrics"


def test_promtool_finds_nothing_wrong(settings: Settings) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    text = exposition(every_metric())
    assert {family.name for family in text_string_to_metric_families(text)} == {
        name.removesuffix("_total") for name in CATALOGUE
    }
    told = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def every_metric() -> list[dict[str, Any]]:
    """One series of each metric of the catalogue."""
    spreads = ("histogram", "summary")
    return [{
        "values": [[m.name, ["x"] * len(m.labels), 1.0]
                   for m in CATALOGUE.values() if m.kind not in spreads],
        "spreads": [[m.name, ["x"] * len(m.labels), [1] * (len(m.buckets) + 1), 2.0]
                    for m in CATALOGUE.values() if m.kind in spreads],
    }]  # fmt: skip


def exposition(snapshots: list[dict[str, Any]]) -> str:
    registry = CollectorRegistry()
    registry.register(Exporter("run/x", TelemetrySettings(port=0), lambda: snapshots))
    return generate_latest(registry).decode()


def test_series_names_are_those_that_prometheus_stores() -> None:
    text = exposition(every_metric())
    stored = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()
              if not line.startswith("#")}  # fmt: skip
    assert stored == series_names(CATALOGUE.values())


# The numbers of one process


def test_a_spread_counts_as_prometheus_client_does() -> None:
    random.seed(0)
    metric = CATALOGUE["aalnet_step_seconds"]
    seen = [*metric.buckets, *(random.expovariate(3) for _ in range(500)), 0.0, 1e9]
    registry = CollectorRegistry()
    theirs = Histogram(metric.name, metric.help, metric.labels, registry=registry,
                       buckets=metric.buckets).labels("a", "0")  # fmt: skip
    ours = Tally(run="a", worker="0")
    for value in seen:
        theirs.observe(value)
        ours.observe(metric.name, value)
    kept = {line for line in generate_latest(registry).decode().splitlines() if "_bucket" in line}
    found = {line for line in exposition([ours.snapshot()]).splitlines() if "_bucket" in line}
    numbers = [{(float(re.findall(r'le="([^"]+)"', line)[0]), float(line.split()[-1]))
                for line in lines} for lines in (kept, found)]  # fmt: skip
    assert numbers[0] == numbers[1]
    assert len(found) == len(metric.buckets) + 1


def test_a_metric_has_a_bounded_number_of_series() -> None:
    tally = Tally(run="a")
    for i in range(3 * SERIES):
        tally.set("aalnet_term", 1.0, term=f"term-{i}")
    assert len(tally.snapshot()["values"]) == SERIES
    tally.set("aalnet_term", 2.0, term="term-0")
    assert values_of(tally)["aalnet_term", ("a", "term-0")] == 2.0


def test_a_tally_takes_numbers_from_several_threads() -> None:
    tally = Tally(run="a", worker="0")

    def count() -> None:
        for _ in range(2000):
            tally.add("aalnet_steps_total")
            tally.observe("aalnet_step_seconds", 0.01)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.snapshot()
    for thread in threads:
        thread.join()
    assert values_of(tally)["aalnet_steps_total", ("a",)] == 8000
    assert sum(tally.snapshot()["spreads"][0][2]) == 8000


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


def figures_after(settings: Settings, log: list[Record], *, past: bool = False) -> Values:
    tally = Tally(run="a", worker="0")
    figures = RecordFigures(tally, settings)
    for record in log:
        figures.see(record, past=past)
    return values_of(tally)


def test_a_log_becomes_metrics(settings: Settings) -> None:
    found = figures_after(settings, LOG)
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
    tally = Tally(run="a", worker="0")
    figures = RecordFigures(tally, settings)
    for record in LOG:
        figures.see(record, past=True)
    figures.see(start)
    found = values_of(tally)
    assert found["aalnet_restarts_total", ("a", "crash")] == 1
    assert found["aalnet_restarts_total", ("a", "driver")] == 1
    assert found["aalnet_lost_images_total", ("a",)] == 16
    assert found["aalnet_checkpoints_total", ("a",)] == 0  # of this process
    assert found["aalnet_non_finite_total", ("a",)] == 0
    assert found["aalnet_evaluation_figure", ("a", "kid_lite0")] == 0.2
    assert found["aalnet_checkpoint_timestamp_seconds", ("a",)] == 115
    assert tally.snapshot()["spreads"] == []
    assert figures.status == "running"


# What a worker tells


def told(settings: Settings, publish: Callable[[Any], None] | None) -> tuple[Teller, list[str]]:
    warned: list[str] = []
    return Teller("a", settings, 0, publish, warned.append), warned


def test_a_damaged_log_is_warned_of_once(settings: Settings) -> None:
    teller, warned = told(settings, None)
    teller.recall([{"kind": "train", "images": 1}, {"kind": "train", "images": 2, "lr": "x"}])
    teller.see({"kind": "checkpoint", "images": 1})
    assert len(warned) == 1
    assert warned[0].startswith("metrics are incomplete: KeyError")


def test_a_teller_whose_messages_nobody_takes_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.telemetry.teller.PUBLISH_S", 0.01)
    tries: list[Any] = []

    def publish(message: Any) -> None:
        tries.append(message)
        raise OSError(28, "No space left on device")

    teller, warned = told(settings, publish)
    teller.start()
    while len(tries) < 3:
        teller.step(4, 0.1, 0.01, 0.0)
    teller.close()
    assert warned == ["metrics are incomplete: OSError: [Errno 28] No space left on device"]
    assert tries[-1]["values"]


def test_without_publishing_there_is_no_thread(settings: Settings) -> None:
    before = threading.active_count()
    teller, _ = told(settings, None)
    teller.start()
    assert threading.active_count() == before
    teller.close()


def test_messages_are_plain_data(settings: Settings) -> None:
    messages: list[Any] = []
    teller, _ = told(settings, messages.append)
    teller.start()
    teller.step(4, 0.1, 0.01, 0.0)
    teller.close()
    assert json.loads(json.dumps(messages[-1])) == messages[-1]
    assert messages[-1]["status"] == "starting"


# The driver's side


def message(status: str = "running", **values: float) -> dict[str, Any]:
    return {"at_s": time.time(), "status": status, "spreads": [],
            "values": [[name, ["a"], value] for name, value in values.items()]}  # fmt: skip


def state_of(export: RunExport) -> tuple[str, float, set[str]]:
    found: Values = {}
    for snapshot in export.read():
        found |= {(name, tuple(key)): value for name, key, value in snapshot["values"]}
    state = [s for s in STATES if found["aalnet_run_state", ("a", s)] == 1]
    assert len(state) == 1
    return state[0], found["aalnet_workers", ("a",)], {name for name, _ in found}


def test_states_of_a_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(run_export.time, "monotonic", lambda: now_s)
    export = RunExport("a", settings, "cpu", 2)
    assert state_of(export)[:2] == ("starting", 0)
    export.take(0, message(aalnet_steps_total=1))
    export.take(1, message(aalnet_learning_rate=1))  # stands for what is a worker's own
    state, workers, names = state_of(export)
    assert (state, workers, "aalnet_learning_rate" in names) == ("running", 2, True)
    now_s += run_export.FRESH_S + 1  # both died
    state, workers, names = state_of(export)
    assert (state, workers) == ("recovering", 0)
    assert "aalnet_steps_total" in names
    assert "aalnet_learning_rate" not in names
    export.take(0, message())
    assert state_of(export)[:2] == ("running", 1)
    export.take(0, message("finished"))
    assert state_of(export)[0] == "finished"


def test_a_message_that_is_read_again_is_no_sign_of_life(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, same = 1000.0, message()
    monkeypatch.setattr(run_export.time, "monotonic", lambda: now_s)
    export = RunExport("a", settings, "cpu", 1)
    for _ in range(10):
        export.take(0, same)
        now_s += 2
    assert state_of(export)[0] == "recovering"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def serving(warned: list[str], instance: str = "run/a", **telemetry: Any) -> Exporter:
    settings = TelemetrySettings(**{"port": 0} | telemetry)
    return Exporter(instance, settings, lambda: [message(aalnet_steps_total=1)], warned.append)


def scrape(port: int | None, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_a_taken_port_is_warned_of_once(taken_port: int) -> None:
    warned: list[str] = []
    with serving(warned, port=taken_port) as found:
        assert found.port is None
    assert len(warned) == 1
    assert "Address already in use" in warned[0]
    assert "telemetry.port" in warned[0]


def test_auto_takes_a_free_port_where_the_usual_one_is_taken(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PORT", taken_port)
    warned: list[str] = []
    with serving(warned, port="auto") as found:
        assert found.port not in {None, taken_port}
        assert "aalnet_steps_total" in scrape(found.port)
    assert warned == []


def test_port_0_serves_nothing() -> None:
    before = threading.active_count()
    with serving([]) as found:
        assert found.port is None
        assert threading.active_count() == before
    assert not targets_folder().exists()


def test_a_run_is_announced_while_it_lasts() -> None:
    with serving([], port="auto") as found:
        (path,) = targets_folder().glob("*.json")
        (entry,) = json.loads(path.read_text(encoding="utf-8"))
        assert entry["targets"] == [f"127.0.0.1:{found.port}"]
        assert entry["labels"]["instance"] == "run/a"
        assert [target.pid for target in targets.targets()] == [os.getpid()]
    assert list(targets_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    warned: list[str] = []
    with serving(warned, port="auto") as found:
        assert "aalnet_steps_total" in scrape(found.port)
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
        assert [target.address for target in targets.targets()] == ["127.0.0.1:9464"]


def test_the_end_waits_for_one_more_scrape_where_somebody_scrapes() -> None:
    done = threading.Event()

    def look(port: int | None) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while not done.wait(0.2):
                scrape(port, **AS_PROMETHEUS)

    with serving([], port="auto") as found:
        looking = threading.Thread(target=look, args=(found.port,))
        looking.start()
        time.sleep(1)
        before = found._scraped_at_s[-1]
        ended_s = time.monotonic()
    assert found._scraped_at_s[-1] > before
    assert time.monotonic() - ended_s < 3
    done.set()
    with pytest.raises(OSError, match="refused"):
        scrape(found.port)
    looking.join(timeout=5)


def test_the_end_waits_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*_: Any) -> None:
        pytest.fail("nobody is to be waited for")

    monkeypatch.setattr(threading.Condition, "wait_for", waits)
    with serving([], port="auto"):
        pass
    with serving([], port="auto") as found:
        scrape(found.port, **AS_PROMETHEUS)  # once: nobody knows when again
    with serving([], port="auto") as found:
        for _ in range(3):
            scrape(found.port)  # a person's look
    with contextlib.suppress(KeyboardInterrupt), serving([], port="auto") as found:
        for _ in range(3):
            scrape(found.port, **AS_PROMETHEUS)
        raise KeyboardInterrupt
    with serving([], port="auto") as found:  # a Prometheus that has gone
        found._scraped_at_s = deque([time.monotonic() - 30, time.monotonic() - 25])


def test_a_hundred_runs_leave_nothing_behind() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def one(number: int) -> bool:
        with serving([], f"run/{number}", port="auto") as found:
            return 'aalnet_steps_total{run="a"} 1.0' in scrape(found.port)

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
    last = {(name, tuple(key)): value for name, key, value in messages[-1]["values"]}
    assert messages[-1]["status"] == "failed"
    assert last["aalnet_non_finite_total", ("a",)] == 1


# A worker's GPU, against a stand-in of torch.cuda


def test_a_gpu_is_told_of_also_where_nvml_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in {
        "is_initialized": True, "mem_get_info": (1000, 4000), "memory_allocated": 500,
        "memory_reserved": 700, "utilization": 60,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    tally = Tally(run="a", worker="1")
    read_gpu(tally)
    memory = {"allocated": 500, "reserved": 700, "used": 3000, "total": 4000}
    wanted = {("aalnet_gpu_memory_bytes", ("a", "1", kind)): size for kind, size in memory.items()}
    assert values_of(tally) == wanted | {("aalnet_gpu_busy_ratio", ("a", "1")): 0.6}

    class NVMLError(Exception):
        """As NVML's own: with MIG there is no such figure."""

    def silent() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    tally = Tally(run="a", worker="1")
    read_gpu(tally)
    assert values_of(tally) == wanted

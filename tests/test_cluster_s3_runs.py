"""Whole runs over S3: faults and outages change no number, and patience ends with a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import cluster.training.loop
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.runs.saver import StorePatienceSpent
from cluster.storage import s3_client
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.s3_server import S3Server
from tests.support.short_runs import EVERY, STEPS, numbers, settings_of, trained

OUTAGE_S = 2.0  # at least


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = Run(FolderStore(tmp_path_factory.mktemp("undisturbed")), "a")
    assert trained(run, settings_of(data)) == "finished"
    return numbers(run)


def test_a_tenth_of_requests_failing(
    proxy: FaultProxy, server: S3Server, data: Path, undisturbed: Any
) -> None:
    run = Run(open_store(f"s3://{server.bucket}/failing"), "a")
    proxy.rule = Rule(0.1, seed=4)
    assert trained(run, settings_of(data)) == "finished"
    proxy.rule = Rule()
    assert sum(proxy.faults.values()) >= 5
    blobs, records = undisturbed
    theirs, logged = numbers(run)
    assert logged == records
    assert theirs == {at: blobs[at] for at in theirs}  # a newer state may have replaced one
    assert max(theirs) == 4 * STEPS
    assert waiting_share(run) <= 0.05


def waiting_share(run: Run) -> float:
    """Of the loop's time, what was no step, no reading and no evaluation."""
    records = run.records()
    steps = [r for r in records if r["kind"] == "train"]
    spans = [r["images"] - b["images"] for b, r in pairwise(steps)]
    busy_s = sum(
        images / 4 * (r["step_s"] + r["data_s"]) for images, r in zip(spans, steps[1:], strict=True)
    )
    last = steps[-1]["images"]
    busy_s += sum(r["seconds"] for r in records if r["kind"] == "evaluation" and r["images"] < last)
    whole_s = steps[-1]["time_s"] - steps[0]["time_s"]
    return max(whole_s - busy_s, 0.0) / whole_s


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[float]]:
    """Call something once a step has been made; gives the list of all steps' times."""

    def install(number: int, act: Callable[[], None]) -> list[float]:
        times: list[float] = []
        step = cluster.training.loop.train_step

        def counted(*arguments: Any) -> Any:
            terms = step(*arguments)
            times.append(time.monotonic())
            if len(times) == number:
                act()
            return terms

        monkeypatch.setattr(cluster.training.loop, "train_step", counted)
        return times

    return install


def test_training_goes_on_while_the_store_is_down(
    proxy: FaultProxy,
    server: S3Server,
    data: Path,
    undisturbed: Any,
    at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    down: list[float] = []

    def up() -> None:
        """Back after some steps, so that the machine's pace does not matter; at last anyway."""
        end_s = down[0] + 60.0
        while sum(at > down[0] for at in times) <= 9 and time.monotonic() < end_s:
            time.sleep(0.05)
        proxy.rule = Rule()
        down.append(time.monotonic())

    def go_down() -> None:
        proxy.rule = Rule(down=True)
        down.append(time.monotonic())
        threading.Timer(OUTAGE_S, up).start()

    times = at_step(2 * EVERY - 2, go_down)
    run = Run(open_store(f"s3://{server.bucket}/down"), "a")
    assert trained(run, settings_of(data)) == "finished"
    began_s, ended_s = down
    assert sum(began_s < at < ended_s for at in times) > 8, "no steps while the store was down"
    told = [r["text"] for r in run.records() if r["kind"] == "warning"]
    assert any("storage fails, training goes on" in text for text in told)
    assert any("storage answers again" in text for text in told)
    blobs, records = undisturbed
    theirs, logged = numbers(run)
    assert logged == records
    assert theirs == {at: blobs[at] for at in theirs}
    assert {4 * EVERY, 4 * STEPS} <= theirs.keys()


def test_patience_ends_with_a_clear_error(
    proxy: FaultProxy,
    server: S3Server,
    data: Path,
    at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    at_step(2 * EVERY - 2, lambda: setattr(proxy, "rule", Rule(down=True)))
    run = Run(open_store(f"s3://{server.bucket}/patience"), "a")
    settings = settings_of(
        data, failures={"storage_patience_s": 1.0, "grace_s": 1.0}, run__images=8000
    )
    started_s = time.monotonic()
    with pytest.raises(StorePatienceSpent, match=r"longer than failures\.storage_patience_s"):
        trained(run, settings)
    assert time.monotonic() - started_s < 40
    proxy.rule = Rule()
    assert [found.images for found in checkpoints(run)] == [4 * EVERY]

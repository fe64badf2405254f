"""Who loses the lease notices and writes no more, be it a store, a suspended process or a run."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.commands.train import train_run
from cluster.runs.run import Run
from cluster.storage import fenced
from cluster.storage.fenced import Fence, FencedStore, fence_of, leased
from cluster.storage.folder import FolderStore
from cluster.storage.lease import Holder, LeaseHeld, LeaseLost, hold, key_of
from cluster.storage.location import open_store
from cluster.storage.store import Store, StoreError
from tests.support.fault_proxy import Rule, fault_proxy
from tests.support.leases import ELSEWHERE, FOLDER, put, quick_beats, silent
from tests.support.s3_server import S3Server, environment
from tests.support.tiny_runs import (
    aalnet,
    aalnet_command,
    command_environment,
    tiny_settings,
    tiny_values,
    write_config,
    write_data,
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_beats(monkeypatch)


def wait_for(happened: Callable[[], bool], limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.05)


# A holder


def lose_it(store: Store) -> None:
    lost = threading.Event()
    with leased(store, FOLDER, "run `r`", lost.set) as mine:
        mine.write("runs/r/run.yaml", b"mine")
        put(store, ELSEWHERE, 2)
        with pytest.raises(LeaseLost):
            mine.create("runs/r/MANIFEST.json", b"{}")
        for refused in (
            lambda: mine.write("runs/r/run.yaml", b"old"),
            lambda: mine.append("runs/r/metrics.jsonl", b"old"),
            lambda: mine.delete("runs/r/run.yaml"),
        ):
            time.sleep(0.2)  # the next time that it asks
            with pytest.raises(LeaseLost):
                refused()
        assert lost.wait(2)


@pytest.mark.usefixtures("quick")
def test_who_was_taken_over_notices_and_writes_no_more(store: FolderStore) -> None:
    with pytest.raises(LeaseLost, match="far-away"):
        lose_it(store)
    assert store.read("runs/r/run.yaml") == b"mine"
    assert Holder.parse(store.read(key_of(FOLDER, 2))) == ELSEWHERE


@pytest.mark.usefixtures("quick")
def test_an_answer_is_as_old_as_its_question(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = FencedStore(store, Fence(FOLDER, 1))
    time.sleep(0.1)  # it asks before the next write

    def answered_then_suspended(*args: object) -> None:
        put(store, ELSEWHERE, 2)
        time.sleep(0.1)

    with monkeypatch.context() as patch:
        patch.setattr(fenced, "check", answered_then_suspended)
        mine.write("runs/r/1", b"the write under way")
    with pytest.raises(LeaseLost):
        mine.write("runs/r/2", b"old")


def test_a_worker_gets_the_fence_as_plain_data(store: FolderStore) -> None:
    assert fence_of(store) is None
    assert fenced.fenced(store, None) is store
    fence = fence_of(FencedStore(store, Fence(FOLDER, 3)))
    again = fenced.fenced(store, fence)
    assert fence_of(again) == fence == {"folder": FOLDER, "number": 3}
    put(store, ELSEWHERE, 4)
    with pytest.raises(LeaseLost):
        again.create("blob", b"")


@pytest.mark.usefixtures("quick")
def test_an_outage_does_not_end_the_holder(server: S3Server) -> None:
    with fault_proxy(server.endpoint, Rule()) as proxy:
        with environment({"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_MAX_ATTEMPTS": "1"}):
            store = open_store(f"s3://{server.bucket}/outage")
            store.keys()  # the client is made now
        with hold(store, FOLDER, "run `r`") as mine:
            proxy.rule = Rule(share=1.0, faults=("error_500",))
            with pytest.raises(StoreError):
                mine.check()
            time.sleep(1.0)
            proxy.rule = Rule()
            mine.check()
            key = key_of(FOLDER, mine.number)
            before = Holder.parse(store.read(key)).heartbeats
            wait_for(lambda: Holder.parse(store.read(key)).heartbeats > before)


# Holds the lease as another machine would, and writes as fast as it can.
SUSPENDED = """
import itertools, sys
from cluster.storage import fenced
from cluster.storage import lease
from cluster.storage.location import open_store
lease._machine = lambda: "elsewhere"
lease.HEARTBEAT_S = fenced.HEARTBEAT_S = 0.1
with fenced.leased(open_store(sys.argv[1]), sys.argv[2], "run `r`") as mine:
    print("held", flush=True)
    for number in itertools.count():
        mine.write(f"runs/r/{number}", b"old")
"""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_suspended_holder_is_taken_over_and_writes_no_more_when_it_wakes(
    tmp_path: Path, server: S3Server, kind: str
) -> None:
    """No more than the one blob whose write was under way; a checkpoint's are never alike."""
    uri = str(tmp_path) if kind == "folder" else f"s3://{server.bucket}/suspended"
    holder = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, uri, FOLDER], env=command_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld), hold(open_store(uri), FOLDER, "run `r`", silent):
        pass
    holder.send_signal(signal.SIGSTOP)
    with leased(open_store(uri), FOLDER, "run `r`") as mine:
        before = set(mine.keys("runs/r/"))
        holder.send_signal(signal.SIGCONT)
        _, errors = holder.communicate(timeout=60)
        assert "LeaseLost: process" in errors
        assert len(set(mine.keys("runs/r/")) - before) <= 1


# A run


def test_a_run_that_is_taken_over_stops_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    write_data(tmp_path)
    settings = tiny_settings(tmp_path, {"run.images": 40_000, "run.log_every_images": 40})
    run = Run(FolderStore(tmp_path / "storage"), "r")
    taken = threading.Thread(
        target=lambda: (
            wait_for(lambda: len(run.checkpoint_images()) > 1),
            put(run.store, ELSEWHERE, 2),
        )
    )
    taken.start()
    with pytest.raises(LeaseLost, match="has taken over runs/r"):
        train_run(run, settings, None)
    taken.join()
    newest = max(run.checkpoint_images())
    assert newest < 40_000
    assert run.records()[-1]["kind"] != "end"


def test_two_commands_on_one_run(tmp_path: Path) -> None:
    write_data(tmp_path)
    values = tiny_values(tmp_path, {"run.images": 400_000})
    command = ("train", write_config(tmp_path / "r.yaml", values), "--storage", tmp_path / "s")
    run = Run(FolderStore(tmp_path / "s"), "r")
    first = subprocess.Popen(
        aalnet_command(*command), env=command_environment(), cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: len(run.checkpoint_images()) > 0)
        second = aalnet(*command, cwd=tmp_path)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"process {first.pid} on" in second.stderr
    finally:
        first.kill()
        first.wait()
    log = tmp_path / "third.log"
    with log.open("wb") as errors:
        third = subprocess.Popen(
            aalnet_command(*command), env=command_environment(), cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    wait_for(lambda: [record["kind"] for record in run.records()].count("start") == 2)
    third.terminate()
    assert third.wait(60) == 143
    assert f"is taken over from process {first.pid}" in log.read_text(encoding="utf-8")

"""The lease: one holder of many contenders, taken over from the dead, never from the living."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from aalnet.errors import UserError
from cluster.commands.train import train_run
from cluster.runs.run import Run
from cluster.storage import fenced, lease
from cluster.storage.fenced import Fence, FencedStore, fence_of, leased
from cluster.storage.folder import FolderStore
from cluster.storage.lease import Holder, LeaseHeld, LeaseLost, hold, key_of
from cluster.storage.location import open_store
from cluster.storage.store import Store, StoreError
from tests.support.fault_proxy import Rule, fault_proxy
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

FOLDER, CONTENDERS = "runs/r/lease", 12
ELSEWHERE = replace(Holder.myself(), machine="another", host="far-away")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "TTL_S", 0.8)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(fenced, "HEARTBEAT_S", 0.1)


def put(store: Store, holder: Holder, number: int = 1) -> None:
    store.write(key_of(FOLDER, number), holder.bytes())


def silent(_: str) -> None:
    pass


# Taking it


def test_the_second_is_refused_in_one_line(store: FolderStore) -> None:
    with (
        hold(store, FOLDER, "run `r`"),
        pytest.raises(LeaseHeld) as caught,
        hold(store, FOLDER, "run `r`"),
    ):
        pass
    told = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    assert "\n" not in told
    for part in ("run `r`", f"process {os.getpid()}", "since", "the same command"):
        assert part in told


def test_a_released_lease_is_free_at_once_and_numbers_grow(store: FolderStore) -> None:
    for number in (1, 2, 3):
        with hold(store, FOLDER, "run `r`") as mine:
            assert mine.number == number
        assert store.keys() == [key_of(FOLDER, number)]


def test_it_is_released_when_the_block_fails(store: FolderStore) -> None:
    with pytest.raises(RuntimeError, match="mine"), hold(store, FOLDER, "run `r`"):
        raise RuntimeError("mine")
    with hold(store, FOLDER, "run `r`") as again:
        assert again.number == 2


def contend(store: Store, rounds: int) -> None:
    """Many contenders at once; whoever has the lease finds nobody else in it."""
    inside, most, gate = 0, 0, threading.Barrier(CONTENDERS)
    lock = threading.Lock()

    def one() -> bool:
        nonlocal inside, most
        gate.wait()
        try:
            with hold(store, FOLDER, "run `r`", silent):
                with lock:
                    inside += 1
                    most = max(most, inside)
                gate.wait()
                with lock:
                    inside -= 1
                return True
        except LeaseHeld:
            gate.wait()
            return False
        except BaseException:
            gate.abort()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(CONTENDERS) as pool:
        for _ in range(rounds):
            done = [pool.submit(one) for _ in range(CONTENDERS)]
            errors = [error for each in done if (error := each.exception())]
            causes = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
            assert (causes, errors) == ([], [])
            assert sum(each.result() for each in done) == 1
    assert most == 1


def test_many_contenders_one_holder_in_a_folder(store: FolderStore) -> None:
    contend(store, rounds=20)


def test_many_contenders_one_holder_in_s3(server: S3Server) -> None:
    contend(open_store(f"s3://{server.bucket}/contend"), rounds=5)


@pytest.mark.usefixtures("quick")
def test_many_contenders_for_a_dead_holders_lease_in_s3(server: S3Server) -> None:
    store = open_store(f"s3://{server.bucket}/takeover")
    for _ in range(3):
        newest = lease._newest(store, FOLDER)
        put(store, ELSEWHERE, 1 if newest is None else newest[0] + 1)
        contend(store, rounds=1)


# The dead and the living


def test_a_dead_process_of_this_machine_is_taken_over_at_once(store: FolderStore) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = lease._started(child.pid)
    assert started
    put(store, replace(Holder.myself(), pid=child.pid, process_started=started))
    with pytest.raises(LeaseHeld), hold(store, FOLDER, "run `r`"):
        pass
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried yet
    told: list[str] = []
    before_s = time.monotonic()
    with hold(store, FOLDER, "run `r`", told.append) as mine:
        assert mine.number == 2
    assert time.monotonic() - before_s < lease.TTL_S / 2  # nothing was watched
    assert "taken over from" in told[0]
    child.communicate()


def test_another_process_with_the_same_pid_is_not_the_holder(store: FolderStore) -> None:
    put(store, replace(Holder.myself(), process_started="1"))
    with hold(store, FOLDER, "run `r`", silent) as mine:
        assert mine.number == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("blob", [b"", b"{", b"[]", b"\xff", b'{"pid": 1}', ELSEWHERE.bytes()])
def test_no_beat_from_elsewhere_is_death(store: FolderStore, blob: bytes) -> None:
    store.write(key_of(FOLDER, 7), blob)
    told: list[str] = []
    before_s = time.monotonic()
    with hold(store, FOLDER, "run `r`", told.append) as mine:
        assert mine.number == 8
    assert time.monotonic() - before_s >= 0.8
    assert "watching up to" in told[0]


@pytest.mark.usefixtures("quick")
def test_a_beat_from_elsewhere_is_life_whatever_its_clock(store: FolderStore) -> None:
    put(store, replace(ELSEWHERE, since="1970-01-01 00:00:00 UTC"))
    beating = threading.Timer(0.3, put, (store, replace(ELSEWHERE, heartbeats=1)))
    beating.start()
    with pytest.raises(LeaseHeld, match="far-away"), hold(store, FOLDER, "r", silent):
        pass
    beating.join()


@pytest.mark.usefixtures("quick")
def test_a_release_while_it_is_watched_ends_the_wait(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "TTL_S", 60.0)
    put(store, ELSEWHERE)
    threading.Timer(0.2, put, (store, replace(ELSEWHERE, released=True))).start()
    before_s = time.monotonic()
    with hold(store, FOLDER, "r", silent):
        assert time.monotonic() - before_s < 30


# Losing it


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


def wait_for(happened: Callable[[], bool], limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.05)


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

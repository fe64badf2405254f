"""The lease: one holder of many contenders, taken over from the dead, never from the living."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from aalnet.errors import UserError
from cluster.storage import lease
from cluster.storage.folder import FolderStore
from cluster.storage.lease import Holder, LeaseHeld, hold, key_of
from cluster.storage.location import open_store
from cluster.storage.store import Store
from tests.support.leases import ELSEWHERE, FOLDER, put, quick_beats, silent
from tests.support.s3_server import S3Server

CONTENDERS = 12


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_beats(monkeypatch)


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

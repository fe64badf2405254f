"""The log that a user finds as one blob: followed by line, cheap in S3, whole after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage import segments
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.log_file import LogFile
from cluster.storage.segments import LogTaken
from cluster.storage.store import Store, StoreError
from tests.support.fault_proxy import FaultProxy, Request, Rule
from tests.support.s3_server import S3Server
from tests.support.segment_logs import Bucket, numbered
from tests.support.tiny_runs import command_environment


@pytest.fixture
def joined_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "FAN_IN", 4)


# Steps and deaths


def steps_of(log: LogFile) -> list[tuple[Callable[[], None], bytes]]:
    """What a run does to its log, and what the log holds after each step."""

    def append(number: int) -> Callable[[], None]:
        return lambda: log.append(numbered(number))

    cut = numbered(0, 1, 3)
    steps = [(append(n), numbered(*range(n + 1))) for n in range(6)]
    steps.append((lambda: log.replace(cut), cut))
    steps += [(append(n), cut + numbered(*range(7, n + 1))) for n in range(7, 13)]
    return [*steps, (log.finish, steps[-1][1]), (lambda: log.append(b"x\n"), steps[-1][1] + b"x\n")]


@pytest.mark.usefixtures("joined_early")
@pytest.mark.parametrize("kind", [FolderStore, Bucket])
def test_a_follower_gets_every_line_once_and_all_after_a_cut(
    tmp_path: Path, kind: type[FolderStore]
) -> None:
    store = kind(tmp_path)
    log, follower, late = (LogFile(store, "run/log.jsonl") for _ in range(3))
    log.read()
    text = b""
    for step, expected in steps_of(log):
        step()
        new = follower.read()
        text = text + new if (text + new) == expected else new
        assert text == expected
    assert late.read() == text
    assert store.read("run/log.jsonl").startswith(numbered(0, 1, 3))
    if kind is FolderStore:
        assert store.keys() == ["run/log.jsonl"]


@pytest.mark.usefixtures("joined_early")
def test_a_log_whose_writer_dies_at_any_request(tmp_path: Path) -> None:
    for writes in range(60):
        store = Bucket(tmp_path / str(writes))
        store.writes = writes
        log = LogFile(store, "run/log.jsonl")
        before = b""
        for step, expected in steps_of(log):
            try:
                step()
            except StoreError:
                break
            if log._segments is not None:
                log._segments.settle()
            before = expected
        found = LogFile(Bucket(store.root), "run/log.jsonl")
        assert found.read() in (before, expected)
        found.append(b"y\n")
        found.finish()
        for after in (FolderStore(store.root), Bucket(store.root)):
            assert after.keys() == ["run/log.jsonl"]
            assert after.read("run/log.jsonl") in (before + b"y\n", expected + b"y\n")


def test_a_copy_of_a_bucket_in_a_folder_goes_on(tmp_path: Path) -> None:
    log = LogFile(Bucket(tmp_path), "run/log.jsonl")
    log.append(b"1\n")
    log.append(b"2\n")
    copy = LogFile(FolderStore(tmp_path), "run/log.jsonl")
    assert copy.read() == b"1\n2\n"
    copy.append(b"3\n")
    assert FolderStore(tmp_path).keys() == ["run/log.jsonl"]
    assert LogFile(FolderStore(tmp_path), "run/log.jsonl").read() == b"1\n2\n3\n"


def test_half_a_line_of_a_dead_writer_is_mended_by_the_next(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.append("log.jsonl", b"1\n2\n{half")
    log = LogFile(store, "log.jsonl")
    assert log.read() == b"1\n2\n"
    log.append(b"3\n")
    assert store.read("log.jsonl") == b"1\n2\n3\n"


# A real server


def test_what_appends_and_reads_cost(proxy: FaultProxy, server: S3Server) -> None:
    """300 appends of 1,000 bytes: 600 kB and not 45 MB; a follower's look is one request."""
    store = open_store(f"s3://{server.bucket}/cost")
    log, follower = (LogFile(store, "run/log.jsonl") for _ in range(2))
    log.read()
    line = b"x" * 999 + b"\n"
    log.append(line)
    follower.read()
    proxy.forget()
    for _ in range(299):
        log.append(line)
    assert log._segments is not None
    log._segments.settle()
    assert proxy.bytes["create"] <= 2 * 300 * len(line)
    assert proxy.requests["create"] <= 299 + 300 / segments.FAN_IN
    assert proxy.requests["delete"] <= 300
    assert proxy.requests["list"] <= 2 * 300 / segments.FAN_IN
    assert proxy.requests.keys() <= {"create", "delete", "list", "get"}
    proxy.forget()
    assert follower.read() == 299 * line
    assert proxy.requests["get"] <= 2 * segments.FAN_IN
    for new in (line, b""):
        log.append(new)
        log._segments.settle()  # a join may have begun with it
        proxy.forget()
        assert follower.read() == new
        assert proxy.requests == ({"list": 1, "get": 1} if new else {"list": 1})
    log.finish()
    assert store.keys() == ["run/log.jsonl"]
    assert store.read("run/log.jsonl") == 301 * line


# Appends as fast as it can, and says what is stored.
WRITER = """
import sys
from cluster.storage import segments
from cluster.storage.location import open_store
from cluster.storage.log_file import LogFile
segments.FAN_IN = 4
log = LogFile(open_store(sys.argv[1]), "run/log.jsonl")
log.read()
for number in range(60):
    if number == 30:
        log.replace(b"".join(b"%d\\n" % each for each in range(0, 30)))
    log.append(b"%d\\n" % number)
    print(number, flush=True)
log.finish()
"""


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("number", [5, 37, 95])
def test_kill_9_at_a_request(
    proxy: FaultProxy, server: S3Server, number: int, served: bool
) -> None:
    uri = f"s3://{server.bucket}/kill-{number}-{served}"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, uri], env=command_environment(), stdout=subprocess.PIPE
    )
    requests = iter(range(10_000))

    def kills(request: Request) -> bool:
        if request.method not in {"PUT", "DELETE"} or next(requests) != number:
            return False
        os.kill(writer.pid, signal.SIGKILL)
        return not served

    proxy.rule = Rule(1.0, ("reset",), matches=kills)
    output, _ = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    stored = len(output.splitlines())
    proxy.rule = Rule()
    log = LogFile(open_store(uri), "run/log.jsonl")
    text = log.read()
    try:
        log.append(b"on\n")
    except LogTaken:  # the dead writer's last request arrived after the look
        log = LogFile(open_store(uri), "run/log.jsonl")
        text = log.read()
        log.append(b"on\n")
    assert text in (numbered(*range(stored)), numbered(*range(stored + 1)))
    log.finish()
    store: Store = open_store(uri)
    assert store.keys() == ["run/log.jsonl"]
    assert store.read("run/log.jsonl") == text + b"on\n"


@pytest.mark.usefixtures("joined_early")
def test_readers_see_whole_prefixes_while_a_log_grows_is_joined_and_ends(server: S3Server) -> None:
    uri = f"s3://{server.bucket}/readers"
    done = threading.Event()

    def read(anew: bool) -> list[bytes]:
        texts, follower = [], LogFile(open_store(uri), "run/log.jsonl")
        while not done.is_set():
            if anew:
                texts.append(LogFile(open_store(uri), "run/log.jsonl").read())
            else:
                texts.append((texts[-1] if texts else b"") + follower.read())
        return texts

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, anew) for anew in (True, False)]
        try:
            log = LogFile(open_store(uri), "run/log.jsonl")
            for number in range(60):
                log.append(numbered(number))
            log.finish()
        finally:
            done.set()
        seen = [reader.result() for reader in readers]
    whole = numbered(*range(60))
    for texts in seen:
        assert all(whole.startswith(text) for text in texts)
        assert [len(text) for text in texts] == sorted(len(text) for text in texts)

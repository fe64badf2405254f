"""S3 over a lying network: faults are retried for a bounded time, nothing cut passes for whole."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cluster.storage import s3, s3_client
from cluster.storage.location import open_store
from cluster.storage.store import BlobExists, Store, StoreError
from tests.support.fault_proxy import FaultProxy, Request, Rule, fault_proxy
from tests.support.s3_server import S3Server, environment

RETRIED = ("reset", "error_500", "slow_down", "lost_reply")


@pytest.fixture(scope="module")
def running_proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def proxy(running_proxy: FaultProxy) -> Iterator[FaultProxy]:
    running_proxy.rule = Rule()
    running_proxy.forget()
    with environment({"AWS_ENDPOINT_URL": running_proxy.endpoint}):
        yield running_proxy


@pytest.fixture(autouse=True)
def in_parts_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs go up in parts from a smaller size on than they do for users: the tests are quicker."""
    monkeypatch.setattr(s3, "WHOLE_BYTES", s3.PART_BYTES)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


@pytest.fixture
def direct(server: S3Server, prefix: str) -> Store:
    """The server without the proxy."""
    return open_store(f"s3://{server.bucket}/{prefix}")


@pytest.fixture
def flaky(proxy: FaultProxy, server: S3Server, prefix: str) -> Store:
    """The server behind the proxy."""
    store = open_store(f"s3://{server.bucket}/{prefix}")
    store.keys()  # the client is made while the proxy's address is in the environment
    proxy.forget()
    return store


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def only(*kinds: str):  # type: ignore[no-untyped-def]
    return lambda request: request.kind in kinds


@pytest.mark.parametrize("fault", RETRIED)
@pytest.mark.parametrize("kind", ["put", "get", "list", "head", "delete", "create"])
def test_one_fault_is_retried(proxy: FaultProxy, flaky: Store, fault: str, kind: str) -> None:
    flaky.write("x", b"123")
    proxy.rule = Rule(1.0, (fault,), matches=only(kind), times=1)
    calls = {
        "put": lambda: flaky.write("y", b"4"),
        "get": lambda: flaky.read("x"),
        "list": flaky.keys,
        "head": lambda: flaky.size("x"),
        "delete": lambda: flaky.delete("x"),
        "create": lambda: flaky.create("z", b"5"),
    }
    calls[kind]()
    assert proxy.faults[fault] == 1
    left = {"put": ["x", "y"], "create": ["x", "z"], "delete": []}
    assert list(flaky.keys()) == left.get(kind, ["x"])


def test_a_lost_reply_to_create_is_success_and_a_rival_is_told(
    proxy: FaultProxy, flaky: Store, direct: Store
) -> None:
    proxy.rule = Rule(1.0, ("lost_reply",), matches=only("create"), times=1)
    flaky.create("x", b"ours")
    assert direct.read("x") == b"ours"
    with pytest.raises(BlobExists):
        direct.create("x", b"theirs")
    proxy.rule = Rule(1.0, ("lost_reply",), matches=only("create"), times=1)
    with pytest.raises(BlobExists):
        flaky.create("x", b"late")
    assert direct.read("x") == b"ours"


@pytest.mark.parametrize("kind", ["begin", "part", "complete"])
@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_in_a_multipart_upload(
    proxy: FaultProxy, flaky: Store, direct: Store, kind: str, fault: str
) -> None:
    data = noise(2 * s3.PART_BYTES + 7)
    proxy.rule = Rule(1.0, (fault,), matches=only(kind), times=1)
    flaky.write("big", data)
    assert proxy.faults[fault] == 1
    assert direct.read("big") == data


def test_a_failed_upload_leaves_nothing_behind(
    proxy: FaultProxy, flaky: Store, direct: Store
) -> None:
    proxy.rule = Rule(1.0, ("error_500",), matches=only("part"))
    with pytest.raises(StoreError):
        flaky.write("big", noise(2 * s3.PART_BYTES))
    assert direct.keys() == []
    assert direct.sweep("", 0.0) == []  # aborted by itself


@pytest.mark.parametrize("size", [1000, 2 * s3.PART_BYTES + 7])
def test_a_truncated_download_is_not_taken_for_whole(
    proxy: FaultProxy, flaky: Store, size: int
) -> None:
    data = noise(size)
    flaky.write("x", data)
    proxy.rule = Rule(1.0, ("truncated",), matches=only("get"), times=1)
    assert flaky.read("x") == data
    proxy.rule = Rule(1.0, ("truncated",), matches=only("get"), times=1)
    assert flaky.read_range("x", 10, 500) == data[10:510]


@pytest.mark.parametrize("kind", ["list", "begin", "complete", "create", "part"])
def test_an_answer_that_is_cut(proxy: FaultProxy, flaky: Store, direct: Store, kind: str) -> None:
    many = [f"many/{number:03d}-{'x' * 200}" for number in range(300)]  # over 64 KiB as a listing
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: direct.write(key, b"1"), many))
    data = noise(2 * s3.PART_BYTES)
    proxy.rule = Rule(1.0, ("truncated",), matches=only(kind), times=1)
    flaky.write("big", data)
    flaky.create("small", b"1")
    assert flaky.keys("many/") == many
    assert proxy.faults["truncated"] == 1
    assert direct.read("big") == data
    assert direct.read("small") == b"1"


def test_a_download_that_is_always_cut_ends_with_an_error(proxy: FaultProxy, flaky: Store) -> None:
    flaky.write("x", bytes(1000))
    proxy.rule = Rule(1.0, ("truncated",), matches=only("get"))
    started_s = time.monotonic()
    with pytest.raises(StoreError):
        flaky.read("x")
    assert time.monotonic() - started_s < 30


def test_throttling_is_retried_for_a_bounded_time(proxy: FaultProxy, flaky: Store) -> None:
    proxy.rule = Rule(1.0, ("slow_down",))
    started_s = time.monotonic()
    with pytest.raises(StoreError, match="SlowDown"):
        flaky.write("x", b"1")
    assert time.monotonic() - started_s < 20
    assert proxy.requests["put"] == s3_client.ATTEMPTS


def test_a_server_that_never_answers(
    proxy: FaultProxy, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    monkeypatch.setattr(s3_client, "READ_S", 0.5)
    proxy.rule = Rule(latency_s=10.0)
    started_s = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store(f"s3://{server.bucket}/x").read("x")
    assert time.monotonic() - started_s < 8


def test_many_writes_while_a_tenth_of_requests_fails(
    proxy: FaultProxy, flaky: Store, direct: Store
) -> None:
    proxy.rule = Rule(0.1, seed=5)
    blobs = {f"blob/{number}": noise(1000, number) for number in range(60)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: flaky.create(*item), blobs.items()))
        read = dict(zip(blobs, pool.map(flaky.read, blobs), strict=True))
    assert read == blobs
    assert sum(proxy.faults.values()) > 4
    assert {key: direct.read(key) for key in direct.keys()} == blobs  # noqa: SIM118, a method


def test_the_proxy_is_reproducible() -> None:
    request = Request("PUT", "put", "b/k", 0)
    runs = [[Rule(0.3, seed=9).fault(request) for _ in range(1)] for _ in range(2)]
    assert runs[0] == runs[1]
    chance = random.Random(9).random()
    assert (chance < 0.3) == (runs[0][0] is not None)

"""The store's contract on a folder and on a real S3 server, and what a lying network does to it."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aalnet.errors import ConfigError
from cluster.storage import s3, s3_client
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import BlobExists, BlobMissing, Store, StoreError, StoreUnavailable
from tests.support.fault_proxy import FaultProxy, Request, Rule, fault_proxy
from tests.support.repeats import repeats
from tests.support.s3_server import S3Server, client_of, environment, free_ports

MIB = 2**20
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


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "storage")
    server = request.getfixturevalue("server")
    return open_store(f"s3://{server.bucket}/{prefix}")


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def only(*kinds: str):  # type: ignore[no-untyped-def]
    return lambda request: request.kind in kinds


# The contract


def test_write_read_list_delete(store: Store) -> None:
    store.write("a/b/one", b"1")
    store.write("a/b/one", b"12")
    if store.appends:
        store.append("a/two", b"3")
        store.append("a/two", b"4")
    else:
        with pytest.raises(StoreError, match="cannot append"):
            store.append("a/two", b"3")
        store.write("a/two", b"34")
    assert store.read("a/b/one") == b"12"
    assert store.read("a/two") == b"34"
    assert store.size("a/two") == 2
    assert store.keys() == ["a/b/one", "a/two"]
    assert store.keys("a/b/") == ["a/b/one"]
    assert store.keys("a/t") == ["a/two"]
    assert store.folders("a/") == ["b"]
    assert store.folders() == ["a"]
    store.delete("a/b/one")
    if isinstance(store, FolderStore):  # SeaweedFS has real folders, and removes empty ones later
        assert store.folders("a/") == []
    assert store.keys() == ["a/two"]


def test_entries_tell_size_and_age(store: Store) -> None:
    store.write("x", b"123")
    (entry,) = store.entries()
    assert (entry.key, entry.bytes) == ("x", 3)
    assert abs(entry.modified_s - time.time()) < 10


def test_an_empty_blob(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.size("empty") == 0
    assert store.read_range("empty", 0, 5) == b""


def test_ranges(store: Store) -> None:
    store.write("x", b"0123456789")
    assert store.read_range("x", 2, 3) == b"234"
    assert store.read_range("x", 8, 100) == b"89"
    assert store.read_range("x", 10, 5) == b""
    assert store.read_range("x", 99, 5) == b""
    assert store.read_range("x", 3, 0) == b""


@pytest.mark.parametrize("key", ["nothing", "no/folder/nothing", "file/below"])
def test_what_is_missing(store: Store, key: str) -> None:
    store.write("file", b"")
    for ask in (store.read, store.size, lambda k: store.read_range(k, 0, 1)):
        with pytest.raises(BlobMissing, match=key):
            ask(key)
    store.delete(key)
    assert store.keys(f"{key}/") == []
    assert store.folders(f"{key}/") == []
    assert store.read("file") == b""


def test_a_blob_over_its_limit_is_refused(store: Store) -> None:
    store.write("x", bytes(1000))
    assert len(store.read("x", 1000)) == 1000
    with pytest.raises(StoreError, match="larger than the 999 bytes"):
        store.read("x", 999)


@pytest.mark.parametrize("key", ["..", "../outside", "a/../../outside", "a/.."])
def test_no_way_out(store: Store, key: str) -> None:
    for ask in (store.read, store.delete, store.folders, lambda k: store.write(k, b"")):
        with pytest.raises(ConfigError, match="leads out of the storage"):
            ask(key)


def test_of_two_creators_one_wins(store: Store) -> None:
    store.create("x", b"first")
    with pytest.raises(BlobExists, match="`x` exists"):
        store.create("x", b"other")
    store.create("x", b"first")  # ours already: a reply may have been lost
    assert store.read("x") == b"first"


def race(store: Store, rival: Store, key: str) -> list[str]:
    """Two writers create one key at one time; who won."""
    start = threading.Barrier(2)

    def create(mine: Store, name: str) -> str | None:
        start.wait()
        try:
            mine.create(key, f"of {name} {'x' * 200}".encode())
        except BlobExists:
            return None
        return name

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(create, store, "one"), pool.submit(create, rival, "two")]
        winners = [name for future in done if (name := future.result())]
    assert [store.read(key)[3:6].decode()] == winners
    return winners


def test_races_have_one_winner_each(store: Store) -> None:
    rival = open_store(store.uri)
    won = [race(store, rival, f"races/{number}") for number in range(repeats(200, 1000))]
    assert {len(winners) for winners in won} == {1}
    assert len({winner for (winner,) in won}) == 2, "one writer always came first: no race"


def test_keys_with_odd_characters(store: Store) -> None:
    names = ["a b.png", "é/ü", "plus+and&", "100%", "q?x=1", "hash#1", "tilde~"]
    for name in names:
        store.write(name, name.encode())
    assert store.keys() == sorted(names)
    assert [store.read(name).decode() for name in names] == names


# S3 alone


def test_paging_over_more_than_a_thousand_keys(direct: Store, server: S3Server) -> None:
    client = client_of(server)
    names = sorted(f"many/{number % 7}/{number}" for number in range(1203))
    prefix = direct.uri.rpartition("/")[2]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(
            lambda name: client.put_object(Bucket=server.bucket, Key=f"{prefix}/{name}", Body=b""),
            names,
        ))  # fmt: skip
    assert direct.keys("many/") == names
    assert direct.folders("many/") == list("0123456")


@pytest.mark.parametrize("size", [s3.PART_BYTES - 1, s3.PART_BYTES, 3 * s3.PART_BYTES + 12345])
def test_parts_up_and_down_are_exact(direct: Store, size: int) -> None:
    data = noise(size)
    direct.write("big", data)
    assert direct.size("big") == size
    assert direct.read("big") == data
    assert direct.read_range("big", s3.PART_BYTES - 5, 10) == data[s3.PART_BYTES - 5 :][:10]


def test_unfinished_uploads_are_swept(direct: Store, server: S3Server) -> None:
    client, prefix = client_of(server), direct.uri.rpartition("/")[2]
    direct.write("whole", b"1")
    for name in ("runs/a/x", "runs/b/y"):
        upload = client.create_multipart_upload(Bucket=server.bucket, Key=f"{prefix}/{name}")
        client.upload_part(
            Bucket=server.bucket, Key=f"{prefix}/{name}", PartNumber=1, Body=bytes(5 * MIB),
            UploadId=upload["UploadId"],
        )  # fmt: skip
    assert direct.sweep("runs/a/", 3600.0) == []
    assert direct.sweep("runs/a/", 0.0) == ["runs/a/x"]
    assert direct.sweep("", 0.0) == ["runs/b/y"]
    assert direct.sweep("", 0.0) == []
    assert direct.keys() == ["whole"]


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("size", [10, 2 * s3.PART_BYTES])
def test_the_switch_of_checksums(server: S3Server, prefix: str, checksums: str, size: int) -> None:
    names = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
    with environment(dict.fromkeys(names, checksums)):
        store = open_store(f"s3://{server.bucket}/{prefix}")
        data = noise(size)
        store.write("x", data)
        store.create("y", data[:100])
        assert store.read("x") == data
        assert store.read("y") == data[:100]


def test_checksums_go_with_the_request_where_wished(proxy: FaultProxy, server: S3Server) -> None:
    for wish in ("when_supported", "when_required", None):
        with environment({"AWS_REQUEST_CHECKSUM_CALCULATION": wish or "when_required"}):
            config = s3_client.make_client().meta.config
            assert config.request_checksum_calculation == (wish or "when_required")


# Mistakes


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "check the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "check the credentials"),
        ({"AWS_ENDPOINT_URL": "no url"}, "check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "check AWS_ENDPOINT_URL"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_the_user_must_mend(
    server: S3Server, prefix: str, variables: dict[str, str], told: str
) -> None:
    with environment(variables):
        store = open_store(f"s3://{server.bucket}/{prefix}")
        for ask in (lambda: store.read("x"), lambda: store.write("x", b""), store.keys):
            with pytest.raises(StoreUnavailable, match=told) as caught:
                ask()
            assert caught.value.exit_code == 2


def test_a_missing_bucket(server: S3Server) -> None:
    store = open_store("s3://no-such-bucket/x")
    for ask in (lambda: store.read("x"), store.keys):  # SeaweedFS makes buckets at a write
        with pytest.raises(StoreUnavailable, match="create the bucket first"):
            ask()


def test_no_credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailable, match="no AWS credentials found"):
        open_store(f"s3://{server.bucket}/x").read("x")


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "s3://b?endpoint=x"])
def test_no_bucket_in_the_address(uri: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_store(uri)


def test_nobody_listens(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 3)
    (port,) = free_ports(1)
    with environment({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}):
        started_s = time.monotonic()
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            open_store(f"s3://{server.bucket}/x").read("x")
        assert not isinstance(caught.value, StoreUnavailable)  # it may come back
        assert time.monotonic() - started_s < 6


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


# A network that fails


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

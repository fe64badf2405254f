"""S3 alone: pages, parts, unfinished uploads, checksums; and what the user must mend is said."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aalnet.errors import ConfigError
from cluster.storage import s3, s3_client
from cluster.storage.location import open_store
from cluster.storage.store import Store, StoreError, StoreUnavailable
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server, client_of, environment, free_ports

MIB = 2**20


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


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# Pages, parts and checksums


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

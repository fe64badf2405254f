"""Data sets in S3 are read as on disk, in few requests; absent, damaged and down are told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aalnet.errors import DataError
from cluster.data.pairs import Pairs
from cluster.data.shards import UNFINISHED
from cluster.storage.s3 import S3Store
from cluster.storage.store import StoreError, StoreUnavailable
from tests.support.pair_checks import refused
from tests.support.s3_server import S3Server, client_of, free_ports
from tests.support.tiny_runs import Row, noise_rows, write_pairs


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the store's calls from now on."""
    made: list[str] = []
    for name in ("read", "read_range", "size", "entries"):
        whole = getattr(S3Store, name)

        def counted(*args: Any, _name: str = name, _whole: Any = whole, **options: Any) -> Any:
            made.append(_name)
            return _whole(*args, **options)

        monkeypatch.setattr(S3Store, name, counted)
    return made


def put_shards(server: S3Server, folder: Path, prefix: str) -> list[Row]:
    rows = noise_rows(40, 64)
    for name, part in (("a", rows[:24]), ("b", rows[24:])):
        path = write_pairs(folder / f"{name}.parquet", part, rows_per_group=8)
        put(server, f"{prefix}/{name}.parquet", path.read_bytes())
    return rows


def put(server: S3Server, key: str, data: bytes) -> None:
    client_of(server).put_object(Bucket=server.bucket, Key=key, Body=data)


def test_a_folder_and_a_file_in_s3_are_read_as_on_disk(
    server: S3Server, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(server, tmp_path, "whole")
    put(server, "whole/deeper/c.parquet", b"not of this folder")
    here = Pairs(str(tmp_path), 64)
    made = requests_of(monkeypatch)
    there = Pairs(f"s3://{server.bucket}/whole", 64, memory_budget_mib=0)
    assert (there.ids, there.label_names, there.channels) == (here.ids, here.label_names, (3, 3))
    for row in np.random.default_rng(0).permutation(40).tolist():
        for a, b in zip(here.pair(row), there.pair(row), strict=True):
            np.testing.assert_array_equal(a, b)
    first = len(made)
    assert first <= 1 + 2 * (1 + 3 + 1) + 5 * 2, (
        "a listing, footers, ids and labels, two a row group"
    )

    again = Pairs(f"s3://{server.bucket}/whole/", 64)
    again.preload()
    np.testing.assert_array_equal(again.pair(39)[0], here.pair(39)[0])
    assert len(made) - first == 1, "all but the listing comes from the disk"
    single = Pairs(f"s3://{server.bucket}/whole/b.parquet", 64, cache_gib=0)
    assert single.ids == here.ids[24:]
    np.testing.assert_array_equal(single.pair(15)[1], here.pair(39)[1])


def test_what_is_not_in_s3(server: S3Server, cached: Path) -> None:
    bucket = f"s3://{server.bucket}"
    put(server, "odd/notes.txt", b"x")
    refused(lambda: Pairs(f"{bucket}/absent.parquet", 32), "absent.parquet", "does not exist")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "/odd", "no .parquet")
    put(server, "odd/x.parquet", b"PAR1 but no more")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "odd/x.parquet", "Parquet")
    put(server, f"odd/{UNFINISHED}", b"{}")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "not whole", "data pack")
    with pytest.raises(StoreUnavailable, match="bucket"):
        Pairs("s3://no-such-bucket/data", 32)


def test_a_shard_that_was_damaged_or_removed_in_s3_is_a_data_error(
    server: S3Server, tmp_path: Path, cached: Path
) -> None:
    put_shards(server, tmp_path, "damaged")
    pairs = Pairs(f"s3://{server.bucket}/damaged", 64, memory_budget_mib=0)
    put(server, "damaged/b.parquet", b"x" * 1000)
    refused(lambda: pairs.pair(39), "b.parquet")
    client_of(server).delete_object(Bucket=server.bucket, Key="damaged/b.parquet")
    refused(lambda: pairs.pair(39), "b.parquet", "gone")
    assert len(pairs.pair(0)) == 2


def test_an_outage_is_a_store_error_and_reading_goes_on_after_it(
    server: S3Server, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(server, tmp_path, "outage")
    pairs = Pairs(f"s3://{server.bucket}/outage", 64, memory_budget_mib=0)
    whole = S3Store.read_range

    def fails(*_: object) -> bytes:
        raise StoreError("storage cannot be reached")

    monkeypatch.setattr(S3Store, "read_range", fails)
    assert len(pairs.pair(1)) == 2, "the first row group is here already"
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            pairs.pair(39)
        assert not isinstance(caught.value, DataError)
    monkeypatch.setattr(S3Store, "read_range", whole)
    assert len(pairs.pair(39)) == 2


def test_a_server_that_is_not_there_is_a_store_error(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setattr("cluster.storage.s3_client.ATTEMPTS", 1)
    with pytest.raises(StoreError, match="cannot be reached"):
        Pairs("s3://bucket/data", 32)

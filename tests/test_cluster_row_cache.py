"""The row cache: whole or fetched again, within its cap, shared and killed at any moment."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.cache import cache_folder
from cluster.data import row_cache
from cluster.data.pairs import Pairs
from cluster.data.row_cache import ENDING, PARTIAL, RowCache
from tests.support.tiny_runs import noise_picture, noise_rows, write_pairs

MIB = 2**20


def table_of(seed: int, size: int = 50_000) -> pa.Table:
    return pa.table({"data": [np.random.default_rng(seed).bytes(size)], "seed": [seed]})


def no_fetch() -> pa.Table:
    raise AssertionError("it should be kept")


def files(cache: RowCache, ending: str = ENDING) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if path.name.endswith(ending))


def test_a_table_is_fetched_once_and_then_mapped(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, MIB)
    fetched, mapped = cache.table("one", lambda: table_of(1))
    assert mapped
    again, mapped = RowCache(tmp_path, MIB).table("one", no_fetch)
    assert mapped
    assert fetched.equals(again)
    assert again.equals(table_of(1))
    assert again.schema.metadata == table_of(1).schema.metadata
    assert len(files(cache)) == 1


def test_metadata_and_empty_tables_are_kept(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([], pa.large_string())}).replace_schema_metadata({"a": "b"})
    cache = RowCache(tmp_path, MIB)
    cache.table("x", lambda: table)
    again, _ = cache.table("x", no_fetch)
    assert again.schema.metadata == {b"a": b"b"}
    assert again.num_rows == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "tail", "other", "longer"])
def test_damage_is_found_and_the_table_fetched_again(tmp_path: Path, damage: str) -> None:
    cache = RowCache(tmp_path, MIB)
    cache.table("one", lambda: table_of(1))
    (path,) = files(cache)
    whole = bytearray(path.read_bytes())
    if damage == "flip":
        whole[len(whole) // 2] ^= 1
    elif damage == "tail":
        whole[-1] ^= 1
    path.unlink()
    path.write_bytes({
        "cut": whole[:-500], "empty": b"", "other": b"hello" * 100, "longer": whole + b"x",
    }.get(damage, bytes(whole)))  # fmt: skip
    again, mapped = cache.table("one", lambda: table_of(1))
    assert mapped
    assert again.equals(table_of(1))
    cache.table("one", no_fetch)


def test_random_flips_and_cuts_are_all_found(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, MIB)
    cache.table("one", lambda: table_of(1, 500))
    (path,) = files(cache)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken if rng.random() < 0.5 else whole[: rng.integers(len(whole))])
        assert row_cache._mapped(path) is None


def test_the_cap_is_kept_and_those_opened_longest_ago_go(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 500_000)
    for seed in range(30):
        cache.table(str(seed), lambda seed=seed: table_of(seed))
        if seed >= 1:
            os.utime(files(cache)[0])  # the clock of a file system may be coarse
            cache.table("0", lambda: table_of(0))
        for age, path in enumerate(files(cache)):
            if path != row_cache_path(cache, "0"):
                os.utime(path, (1000 + age, 1000 + age))
        assert sum(path.stat().st_size for path in files(cache)) <= 500_000
    cache.table("0", no_fetch)
    assert 5 <= len(files(cache)) <= 10


def row_cache_path(cache: RowCache, identity: str) -> Path:
    return cache.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:40]}{ENDING}"


def test_a_table_that_has_gone_from_the_disk_can_still_be_read(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 60_000)
    kept = [cache.table(str(seed), lambda seed=seed: table_of(seed))[0] for seed in range(8)]
    assert len(files(cache)) == 1
    assert all(table.equals(table_of(seed)) for seed, table in enumerate(kept))


def test_abandoned_files_are_removed_and_young_ones_left(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, MIB)
    cache.folder.mkdir()
    old, young = cache.folder / f".old{PARTIAL}", cache.folder / f".young{PARTIAL}"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    cache.table("one", lambda: table_of(1))
    assert files(cache, PARTIAL) == [young]


def test_a_full_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = RowCache(tmp_path, MIB)
    cache.table("before", lambda: table_of(0))
    monkeypatch.setattr(row_cache, "_write", full)
    for seed in (1, 2, 3):
        table, mapped = cache.table(str(seed), lambda seed=seed: table_of(seed))
        assert table.equals(table_of(seed))
        assert not mapped
    cache.table("before", no_fetch)
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert "No space left" in told
    assert files(cache, PARTIAL) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = RowCache(tmp_path / "file", MIB)
    for _ in range(2):
        table, mapped = cache.table("one", lambda: table_of(1))
        assert (table.equals(table_of(1)), mapped) == (True, False)
    assert capsys.readouterr().err.count("warning") == 1


def test_an_error_of_the_fetch_comes_out_and_leaves_nothing(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, MIB)

    def fails() -> pa.Table:
        raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="gone"):
        cache.table("one", fails)
    assert files(cache) + files(cache, PARTIAL) == []
    cache.table("one", lambda: table_of(1))


def test_two_threads_fetch_the_same_table_once(tmp_path: Path) -> None:
    fetched: list[int] = []

    def slow() -> pa.Table:
        fetched.append(1)
        time.sleep(0.3)
        return table_of(1)

    caches = [RowCache(tmp_path, MIB) for _ in range(4)]
    threads = [threading.Thread(target=cache.table, args=("one", slow)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("AALNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "aalnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "aalnet"


# Through a data set


def test_a_data_set_beyond_the_memory_budget_reads_each_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    path = write_pairs(tmp_path / "x.parquet", noise_rows(60, 64), rows_per_group=5)
    pairs = Pairs(str(path), 64, memory_budget_mib=1)
    order = np.random.default_rng(0).integers(0, 60, 200).tolist()
    for row in order:
        np.testing.assert_array_equal(
            pairs.pair(row)[0], noise_picture(2 * row, 64).transpose(2, 0, 1)
        )
    assert len(list((tmp_path / "cache" / "rows").glob(f"*{ENDING}"))) == 12
    path.write_bytes(path.read_bytes()[:1000])
    pairs.pair(3)  # mapped already: the file is not looked at again


def test_a_changed_data_set_is_never_mixed_with_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    rows = noise_rows(30, 64)
    path = write_pairs(tmp_path / "x.parquet", rows)
    before = Pairs(str(path), 64, memory_budget_mib=0)
    old = [before.pair(row)[0] for row in range(30)]
    write_pairs(path, rows[::-1])
    after = Pairs(str(path), 64, memory_budget_mib=0)
    for row in range(30):
        np.testing.assert_array_equal(after.pair(row)[0], old[29 - row])

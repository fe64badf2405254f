"""The shard cache: whole or made again, within its cap, shared, on a full disk."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aalnet.errors import DataError
from cluster.cache import cache_folder
from cluster.data import shard_cache
from cluster.data.rows import OpenFile, read_rows
from cluster.data.shard_cache import ENDING, PARTIAL, ShardCache
from cluster.data.shards import Shard, list_shards, read_index
from tests.support.tiny_runs import noise_rows, write_pairs

MIB = 2**20
ROWS = noise_rows(12, 32)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """12 pairs in 3 row groups, compressed."""
    return shard_of(tmp_path / "x.parquet")


def shard_of(path: Path) -> Shard:
    write_pairs(path, ROWS)
    (one,) = list_shards(str(path))
    return one


def copies(cache: ShardCache, ending: str = ENDING) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if path.name.endswith(ending))


def content(shard: Shard) -> list[list[bytes | None]]:
    groups = [read_rows(shard, number, 4) for number in range(3)]
    return [rows.pictures(row, OpenFile) for rows in groups for row in range(4)]


# Copies


def test_a_copy_is_made_once_and_is_read_in_place(
    tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_index(shard).compressed
    assert read_rows(shard, 0, 4).shard is None
    copy = ShardCache(tmp_path, MIB).copy_of(shard)
    assert read_rows(copy, 0, 4).shard is copy
    assert content(copy) == content(shard) == [[row["condition"], row["target"]] for row in ROWS]
    ours, its = read_index(copy), read_index(shard)
    assert (ours.ids, ours.labels, ours.compressed) == (its.ids, its.labels, False)
    monkeypatch.setattr(shard_cache, "_write_plain", lambda *_: pytest.fail("it is there"))
    assert ShardCache(tmp_path, MIB).copy_of(shard) == copy


def test_empty_cells_and_repeated_pictures_lie_in_place_too(tmp_path: Path) -> None:
    rows = noise_rows(9)
    rows[2]["condition"], rows[5]["target"], rows[7] = None, b"", rows[1]
    path = write_pairs(tmp_path / "x.parquet", rows, rows_per_group=9)
    for use_dictionary in (True, False):
        pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=use_dictionary)
        (shard,) = list_shards(str(path))
        places = read_rows(shard, 0, 9)
        assert places.shard is shard
        cells = [places.pictures(row, OpenFile) for row in range(9)]
        assert cells == [[row["condition"], row["target"]] for row in rows]


def test_random_damage_of_a_copy_is_found_or_does_no_harm(tmp_path: Path, shard: Shard) -> None:
    path = Path(ShardCache(tmp_path, MIB).copy_of(shard).name)
    whole, sound = path.read_bytes(), content(shard)
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken if rng.random() < 0.7 else whole[: rng.integers(len(whole))])
        try:
            (copy,) = list_shards(str(path))
            assert content(copy) == sound
            assert read_index(copy).ids == [row["id"] for row in ROWS]
        except DataError:
            refusals += 1
    assert refusals > 250


def test_a_copy_that_has_left_the_disk_is_still_read(tmp_path: Path, shard: Shard) -> None:
    copy = ShardCache(tmp_path, MIB).copy_of(shard)
    rows, file = read_rows(copy, 0, 4), OpenFile(copy)
    os.unlink(copy.name)
    assert rows.pictures(1, lambda _: file) == [ROWS[1]["condition"], ROWS[1]["target"]]


def test_several_threads_make_one_copy(
    tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    write = shard_cache._write_plain

    def slow(*arguments: object) -> None:
        calls.append(1)
        time.sleep(0.3)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_cache, "_write_plain", slow)
    threads = [
        threading.Thread(target=ShardCache(tmp_path, MIB).copy_of, args=(shard,)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# The folder


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("AALNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "aalnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "aalnet"


def test_the_cap_is_kept_and_copies_opened_longest_ago_go(tmp_path: Path) -> None:
    shards = [shard_of(tmp_path / f"{i}.parquet") for i in range(12)]
    size = ShardCache(tmp_path, MIB).copy_of(shards[0]).bytes
    cache = ShardCache(tmp_path, 4 * size + 100)
    for shard in shards:
        cache.copy_of(shard)
        assert cache.copy_of(shards[0]).name.startswith(str(cache.folder))
        assert sum(path.stat().st_size for path in copies(cache)) <= cache.cap_bytes
    assert len(copies(cache)) == 4
    assert cache.existing(shards[0]) is not None
    assert cache.existing(shards[-1]) is not None


def test_abandoned_files_are_removed_and_young_ones_left(tmp_path: Path, shard: Shard) -> None:
    cache = ShardCache(tmp_path, MIB)
    cache.folder.mkdir()
    old, young = cache.folder / f"old{PARTIAL}", cache.folder / f"young{PARTIAL}"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    cache.copy_of(shard)
    assert copies(cache, PARTIAL) == [young]


def test_what_a_killed_process_left_is_written_anew(tmp_path: Path, shard: Shard) -> None:
    cache = ShardCache(tmp_path, MIB)
    cache.folder.mkdir()
    Path(cache._path(shard)).with_suffix(PARTIAL).write_bytes(b"x" * 10 * MIB)
    assert content(cache.copy_of(shard)) == content(shard)
    assert copies(cache, PARTIAL) == []


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before, *others = [shard_of(tmp_path / f"{i}.parquet") for i in range(3)]
    cache = ShardCache(tmp_path, MIB)
    copy = cache.copy_of(before)
    monkeypatch.setattr(shard_cache, "_write_plain", full)
    assert [cache.copy_of(shard) for shard in others] == others
    assert cache.copy_of(before) == copy
    message = capsys.readouterr().err
    assert message.count("warning") == 1
    assert "No space left" in message
    assert copies(cache, PARTIAL) == []


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ShardCache(tmp_path / "file", MIB)
    assert [cache.copy_of(shard) for _ in range(2)] == [shard, shard]
    assert capsys.readouterr().err.count("warning") == 1

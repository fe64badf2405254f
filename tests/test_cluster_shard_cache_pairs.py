"""A data set through the shard cache: right and in little memory, whatever befalls the copies."""

import contextlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.data.pairs import Pairs
from cluster.data.shard_cache import ENDING
from tests.support.tiny_runs import command_environment, noise_picture, noise_rows, write_pairs


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies, still empty."""
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def check(pairs: Pairs, rows: int = 60, size_px: int = 64) -> None:
    for row in np.random.default_rng(0).integers(0, rows, 2 * rows).tolist():
        for side, image in enumerate(pairs.pair(row)):
            expected = noise_picture(2 * row + side, size_px).transpose(2, 0, 1)
            np.testing.assert_array_equal(image, expected)


def test_a_plain_data_set_is_read_where_it_lies_within_little_memory(
    tmp_path: Path, cached: Path
) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(300, 256), rows_per_group=30)
    pq.write_table(pq.read_table(path), path, compression="none", row_group_size=30)
    size_kib = path.stat().st_size // 1024
    pairs = Pairs(str(path), 256, memory_budget_mib=1)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in np.random.default_rng(0).permutation(300).tolist():
        pairs.pair(row)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < size_kib / 3
    assert not cached.exists()


def test_a_compressed_data_set_is_read_from_its_copy(tmp_path: Path, cached: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(60, 64), rows_per_group=5)
    pairs = Pairs(str(path), 64, memory_budget_mib=1)
    check(pairs)
    (copy,) = cached.iterdir()
    assert all(rows.shard is not None for rows in pairs._rows.values())
    path.write_bytes(path.read_bytes()[:1000])
    check(pairs)  # the source is not looked at again
    write_pairs(path, noise_rows(60, 64), rows_per_group=5)
    copy.write_bytes(copy.read_bytes()[:5000])
    check(Pairs(str(path), 64, memory_budget_mib=1))


@pytest.mark.parametrize("damage", ["cut", "removed", "replaced"])
def test_a_copy_damaged_while_it_is_read_is_made_again(
    tmp_path: Path, cached: Path, damage: str
) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(60, 64), rows_per_group=5)
    pairs = Pairs(str(path), 64, memory_budget_mib=1)
    pairs.pair(30)
    (copy,) = cached.iterdir()
    whole = copy.read_bytes()
    if damage != "cut":
        copy.unlink()
    if damage != "removed":
        copy.write_bytes(whole[:2000])
    check(pairs)
    assert copy.stat().st_size == len(whole)


def test_shards_beyond_the_cap_do_not_push_out_the_others(tmp_path: Path, cached: Path) -> None:
    for name, rows in (("a", slice(30)), ("b", slice(30, 60))):
        write_pairs(tmp_path / "set" / f"{name}.parquet", noise_rows(60, 64)[rows])
    size_bytes = (tmp_path / "set" / "a.parquet").stat().st_size
    check(Pairs(str(tmp_path / "set"), 64, memory_budget_mib=1, cache_gib=1.5 * size_bytes / 2**30))
    assert len(list(cached.iterdir())) == 1


def test_a_changed_data_set_is_never_mixed_with_the_old(tmp_path: Path, cached: Path) -> None:
    rows = noise_rows(30, 64)
    path = write_pairs(tmp_path / "x.parquet", rows)
    before = Pairs(str(path), 64, memory_budget_mib=0)
    old = [before.pair(row)[0] for row in range(30)]
    write_pairs(path, rows[::-1])
    after = Pairs(str(path), 64, memory_budget_mib=0)
    for row in range(30):
        np.testing.assert_array_equal(after.pair(row)[0], old[29 - row])


READER = """
import sys
from cluster.data.pairs import Pairs
while True:
    pairs = Pairs(sys.argv[1], 64, memory_budget_mib=0, cache_gib=1e-3)
    for row in range(0, len(pairs), 3):
        pairs.pair(row)
    print("round", flush=True)
"""


@pytest.mark.slow
def test_two_readers_killed_at_random_leave_a_cache_that_is_right(
    tmp_path: Path, cached: Path
) -> None:
    for i in range(24):
        write_pairs(tmp_path / "set" / f"{i:02}.parquet", noise_rows(120, 64)[5 * i : 5 * i + 5])
    rng = np.random.default_rng(3)
    for _ in range(6):
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(tmp_path / "set")],
                env=command_environment(), stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]  # fmt: skip
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"round\n"
        with contextlib.suppress(OSError, IndexError):
            next(cached.glob(f"*{ENDING}")).unlink()  # so that one is written
        time.sleep(rng.uniform(0, 0.3))
        for reader in readers:
            reader.send_signal(signal.SIGKILL)
            reader.communicate()
        for file in cached.glob(f"*{ENDING}"):
            assert len(pq.ParquetFile(file, page_checksum_verification=True).read()) == 5
    check(Pairs(str(tmp_path / "set"), 64, memory_budget_mib=0, cache_gib=1e-3), rows=120)

"""The row cache, its readers killed at random moments."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.data import row_cache
from cluster.data.pairs import Pairs
from cluster.data.row_cache import ENDING
from tests.support.tiny_runs import command_environment, noise_picture, noise_rows, write_pairs

READER = """
import sys
from cluster.data.pairs import Pairs
while True:
    pairs = Pairs(sys.argv[1], 64, memory_budget_mib=0, cache_gib=1e-3)
    for row in range(0, len(pairs), 3):
        pairs.pair(row)
    print("round", flush=True)
"""


def test_two_readers_killed_at_random_leave_a_cache_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    path = write_pairs(tmp_path / "x.parquet", noise_rows(120, 64), rows_per_group=5)
    rng = np.random.default_rng(3)
    environment = command_environment() | {"AALNET_CACHE": str(tmp_path / "cache")}
    for _ in range(6):
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(path)], env=environment, stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"round\n"
        time.sleep(rng.uniform(0, 0.3))
        for reader in readers:
            reader.send_signal(signal.SIGKILL)
            reader.communicate()
        kept = list((tmp_path / "cache" / "rows").glob(f"*{ENDING}"))
        assert kept
        assert all(row_cache._mapped(file) is not None for file in kept)
    pairs = Pairs(str(path), 64, memory_budget_mib=0, cache_gib=1e-3)
    for row in range(120):
        np.testing.assert_array_equal(
            pairs.pair(row)[1], noise_picture(2 * row + 1, 64).transpose(2, 0, 1)
        )

"""Packing, killed again and again: what is there at the end is what an undisturbed call writes."""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from aalnet.errors import DataError
from cluster.data.pairs import Pairs
from cluster.data.shards import UNFINISHED
from tests.support.packs import contents, packed, tree
from tests.support.tiny_runs import aalnet_command, command_environment


def test_killed_at_random_and_called_again(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", 600), tmp_path / "out"
    (source / "a" / "000.target.png").write_bytes(b"bad")
    command = aalnet_command(
        "data", "pack", source, "--out", out, "--workers", "0", "--rows-per-shard", "10"
    )
    rng = np.random.default_rng(5)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command, env=command_environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        while not (out / "train" / UNFINISHED).exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() != 0
        if (out / "train" / UNFINISHED).exists():
            with pytest.raises(DataError, match="not whole"):
                Pairs(str(out / "train"), 16)
    assert kills
    subprocess.run(command, env=command_environment(), check=True, capture_output=True)
    whole = packed(source, tmp_path / "other", rows_per_shard=10)
    assert sum(whole.rows.values()) == 599
    for name, data in contents(tmp_path / "other").items():
        if name.endswith((".parquet", "rejected.jsonl")):
            assert (out / name).read_bytes() == data
    kept = {name for name in contents(out) if not name.endswith(".partial")}
    assert kept == set(contents(tmp_path / "other"))

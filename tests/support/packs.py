"""Sources to pack, packing in this process, and what lies in a pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.data.packer import PackOptions, PackReport, pack
from cluster.data.packing import ShardPlan, pack_shard
from tests.support.tiny_runs import encoded, noise_picture


def here(jobs: list[ShardPlan]) -> Iterator[dict[str, Any]]:
    """Each shard packed in this process, one after the other."""
    return map(pack_shard, jobs)


def packed(source: Path | str, out: Path | str, **asked: Any) -> PackReport:
    """Pack `source` into `out` in this process, with the options `asked`."""
    return pack(PackOptions(str(source), str(out), **asked), here, lambda *_: None)


def tree(folder: Path, count: int = 40, size_px: int = 16) -> Path:
    """Pairs of three labels in `folder`."""
    for i in range(count):
        for side, seed in (("condition", 2 * i), ("target", 2 * i + 1)):
            path = folder / "abc"[i % 3] / f"{i:03}.{side}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(noise_picture(seed, size_px)))
    return folder


def reasons(done: PackReport) -> dict[str, str]:
    """Of each pair left out, by its id."""
    return {one.id: one.reason for one in done.rejected}


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """id: row, over both splits."""
    files = [
        path for split in ("train", "test") for path in sorted((out / split).glob("*.parquet"))
    ]
    return {row["id"]: row for path in files for row in pq.read_table(path).to_pylist()}


def contents(out: Path) -> dict[str, bytes]:
    """Every file below `out` by its path from there."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}

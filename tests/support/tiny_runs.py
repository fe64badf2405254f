"""Small data sets, settings and commands that the tests of training share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from PIL import Image

from aalnet.settings import Settings, parse_settings
from cluster.runs.run import Record

ROOT = Path(__file__).resolve().parents[2]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("condition", PICTURE), ("target", PICTURE)]
)
CLOCKS = (
    "time_s",
    "step_s",
    "data_s",
    "images_per_s",
    "eta_s",
    "seconds",
    "stall_s",
    "train_seconds",
)
Row = dict[str, Any]


def encoded(picture: Image.Image | NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise_picture(seed: int, size_px: int = 32, channels: int = 3) -> NDArray[np.uint8]:
    """Random pixels, [S, S] for one channel and [S, S, 3] for three."""
    shape = (size_px, size_px) if channels == 1 else (size_px, size_px, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noise_rows(
    count: int, size_px: int = 32, *, labels: int = 3, channels: tuple[int, int] = (3, 3)
) -> list[Row]:
    """Rows with ids `row-0`, `row-1`... and labels `a`, `b`... in turn."""
    return [
        {
            "id": f"row-{i}",
            "label": "abcdefghij"[i % labels],
            "condition": encoded(noise_picture(2 * i, size_px, channels[0])),
            "target": encoded(noise_picture(2 * i + 1, size_px, channels[1])),
        }
        for i in range(count)
    ]


def write_pairs(path: Path, rows: Sequence[Row], rows_per_group: int = 4) -> Path:
    """A Parquet file as the project reads it."""
    wrapped = [
        {
            **row,
            "condition": {"bytes": row["condition"], "path": None},
            "target": {"bytes": row["target"], "path": None},
        }
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(wrapped, SCHEMA), path, row_group_size=rows_per_group)
    return path


def write_data(folder: Path, train_rows: int = 13, test_rows: int = 5) -> Path:
    """`train.parquet` and `test.parquet` with three labels, 32 px."""
    write_pairs(folder / "train.parquet", noise_rows(train_rows))
    write_pairs(folder / "test.parquet", noise_rows(test_rows))
    return folder


def tiny_values(data: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings as in a file: 8 steps of 4 conditions, each with every term at work; `overrides`
    by dotted key."""
    values: dict[str, Any] = {
        "model": "aalnet",
        "data": {
            "train": str(data / "train.parquet"),
            "test": str(data / "test.parquet"),
            "size_px": 32,
            "batch_images": 4,
        },
        "network": {"widths": [4, 8], "embedding_size": 8, "noise_size": 4},
        "objective": {
            "K": 2,
            "penalty_interval": 2,
            "r1_interval": 2,
            "offset_share": 0.2,
            "entropy_from": 0.0,
            "adversary_from": 0.0,
            "lambda_warmup": 0.0,
        },
        "optimizer": {"warmup_images": 8},
        "evaluation": {"samples": 2, "max_images": 4},
        "run": {
            "images": 32,
            "checkpoint_every_images": 16,
            "log_every_images": 8,
            "grid_conditions": 2,
            "device": "cpu",
            "workers": 0,
        },
    }
    for dotted, value in (overrides or {}).items():
        *parents, key = dotted.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[key] = value
    return values


def tiny_settings(data: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    return parse_settings(tiny_values(data, overrides))


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def without_clocks(records: Iterable[Record], kinds: Sequence[str]) -> list[Record]:
    """The records of some kinds, without what differs between two runs of one thing."""
    return [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in records
        if record["kind"] in kinds
    ]


def command_environment() -> dict[str, str]:
    """For a child: one thread, the repository on the path, the caller's storage and Ray unset."""
    unset = ("AALNET_STORAGE", "RAY_ADDRESS", "PYTEST_CURRENT_TEST")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def aalnet_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "aalnet", *map(str, arguments)]


def aalnet(
    *arguments: str | Path,
    cwd: Path,
    timeout_s: float = 100,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `aalnet` as a person would, in `command_environment()` or another."""
    return subprocess.run(
        aalnet_command(*arguments),
        cwd=cwd,
        env=command_environment() if environment is None else environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )

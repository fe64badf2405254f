"""A folder of 20,000 pairs of 32 px, one in a hundred of them bad in one of eight ways, is packed
by `aalnet data pack` with Ray Data and two workers, the start of Ray included, and packed again.
Then the pairs are read from the shards as in `data`, with a budget that holds no decoded ones."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.speed.data import READ_BAR, reading
from benchmarks.speed.steps import demo, medians, ratio, spread
from benchmarks.table import Result, Row

PAIRS, BAD_EVERY = 20_000, 100
SECOND_CALL_BAR_S = 10.0


def measure(quick: bool) -> Result:
    """Are all good pairs in and all bad ones named, how long does it take, how fast is it read?"""
    count = PAIRS // 20 if quick else PAIRS
    with tempfile.TemporaryDirectory() as folder:
        bad = write_tree(Path(folder) / "pictures", count)
        first, first_s = packed(Path(folder))
        again, again_s = packed(Path(folder))
        settings = demo(
            f"run.images={480 if quick else 1200}",
            f"data.train={folder}/set/train",
            f"data.memory_budget_mib={1 if quick else 8}",
        )
        seconds, cpu_seconds = reading(settings, rounds=1 if quick else 21)
    named = {one["id"] for one in first["rejected"]}
    whole = named == bad and sum(first["rows"].values()) == count - len(bad)
    done = again["shards_done_before"] == again["shards"] and again["rejected"] == first["rejected"]
    rows = [
        Row("good pairs in and bad ones named, share", float(whole), bar=1, at_least=True),
        Row("shards that a second call skips, share", float(done), bar=1, at_least=True),
        Row(f"packing {count:,} pairs", first_s, "s"),
        Row("second call", again_s, "s", bar=SECOND_CALL_BAR_S),
        Row(
            "reading / decoding", ratio(seconds, "decoding", "reading"), bar=READ_BAR, at_least=True
        ),
        Row("Pairs.views / decoding", ratio(seconds, "decoding", "Pairs.views")),
    ]
    cpu = ratio(cpu_seconds, "decoding", "reading")
    rows.append(Row("reading / decoding, CPU seconds", cpu))
    raw = [spread(seconds, "decoding", "reading"), *medians(seconds, "pair", settings.run.images)]
    return Result(rows, raw)


def packed(folder: Path) -> tuple[dict, float]:  # type: ignore[type-arg]
    """What `aalnet data pack --json` says, and its seconds from start to end."""
    command = [sys.executable, "-m", "aalnet", "data", "pack", str(folder / "pictures")]
    command += ["--out", str(folder / "set"), "--workers", "2", "--json"]
    started_s = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), time.perf_counter() - started_s


def write_tree(folder: Path, count: int) -> set[str]:
    """Soft random pictures; the ids of the bad pairs."""
    rng, bad = np.random.default_rng(0), set()
    for i in range(count):
        stem = folder / f"label{i % 10}" / f"{i:06}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = small.resize((32, 32), Image.Resampling.BICUBIC)
        condition, target = (Path(f"{stem}.{side}.png") for side in ("condition", "target"))
        picture.save(condition, compress_level=1)
        picture.transpose(Image.Transpose.ROTATE_90).save(target, compress_level=1)
        if i % BAD_EVERY == 7:
            bad.add(f"{stem.parent.name}/{stem.name}")
            spoil(i // BAD_EVERY % 8, picture, condition, target)
    return bad


def spoil(way: int, picture: Image.Image, condition: Path, target: Path) -> None:
    """Make a pair unusable."""
    if way == 0:
        target.write_bytes(b"")
    elif way == 1:
        condition.write_bytes(b"no picture")
    elif way == 2:
        target.unlink()
    elif way == 3:
        picture.convert("RGBA").save(target)
    elif way == 4:
        picture.resize((32, 31)).save(condition)
    elif way == 5:
        picture.resize((40, 40)).save(condition)
    elif way == 6:
        condition.write_bytes(condition.read_bytes()[:-60])
    else:
        picture.convert("L").save(target)

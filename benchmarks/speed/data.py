"""How fast pairs are packed and read, and whether data keeps the loop waiting."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from aalnet.settings import Settings
from benchmarks.speed.loops import loop_settings, plain_loop
from benchmarks.speed.training import CYCLE, demo
from benchmarks.speed.turns import Times, in_turns
from benchmarks.table import Result, Row
from cluster.data.order import Order
from cluster.data.pairs import Pairs
from cluster.data.pictures import decode_image
from cluster.data.reader import read_batches

CASES = {  # size_px, memory_budget_mib: too little for the decoded pictures
    "64 px, pictures in their file": (64, 8),
    "32 px, pictures in their file": (32, 1),
}
PAIRS, BAD_EVERY = 20_000, 100


def data(quick: bool) -> Result:
    """The wait is that of the real loop, demo settings, two plain gloo processes, from its own log:
    the share of an iteration spent waiting for the batch, median over cycles of 16 steps, the first
    left out. Reading is `read_batches` drained by an idle consumer, with one thread that decodes,
    mirrors, shifts, draws noise and stacks; decoding is `decode_image` alone over the same pictures
    in a tight loop of one thread; `Pairs.views` is what lies between: find, decode and check a
    pair, no more. They take turns, and the figure is the ratio of the rates' medians, and that of
    CPU seconds. Neither case holds decoded pictures: they are read from the data set's file where
    they lie.
    """
    records = plain_loop(loop_settings((2 if quick else 6) * CYCLE, quick=quick))
    wait = median(r["data_s"] / (r["step_s"] + r["data_s"]) for r in records)
    rows = [Row("data wait / iteration", 100 * wait, "%", bar=1.0)]
    raw: list[str] = []
    images = 240 if quick else 1440
    for name, (size_px, budget_mib) in CASES.items():
        size = (f"data.size_px={size_px}", f"data.memory_budget_mib={budget_mib}")
        times = reading(demo(f"run.images={images}", *size), rounds=1 if quick else 7)
        rows += _reading_rows(times, f", {name}")
        raw += [f"{name}: {line}" for line in times.medians("pair", images)]
    return Result(rows, raw)


def pack(quick: bool) -> Result:
    """A folder of 20,000 pairs of 32 px, one in a hundred of them bad in one of eight ways, is
    packed by `aalnet data pack` with Ray Data and two workers, the start of Ray included, and
    packed again. Then the pairs are read from the shards as in `data`, with a budget that holds no
    decoded ones.
    """
    count = PAIRS // 20 if quick else PAIRS
    with tempfile.TemporaryDirectory() as folder:
        bad = write_tree(Path(folder) / "pictures", count)
        first, first_s = pack_folder(Path(folder))
        again, again_s = pack_folder(Path(folder))
        settings = demo(
            f"run.images={480 if quick else 1200}",
            f"data.train={folder}/set/train",
            f"data.memory_budget_mib={1 if quick else 8}",
        )
        times = reading(settings, rounds=1 if quick else 21)
    names = {rejected["id"] for rejected in first["rejected"]}
    whole = names == bad and sum(first["rows"].values()) == count - len(bad)
    same = again["shards_done_before"] == again["shards"] and again["rejected"] == first["rejected"]
    rows = [
        Row("good pairs in and bad ones named, share", float(whole), bar=1, at_least=True),
        Row("shards that a second call skips, share", float(same), bar=1, at_least=True),
        Row(f"packing {count:,} pairs", first_s, "s"),
        Row("second call", again_s, "s", bar=10.0),
    ]
    raw = [times.single_rounds("decoding", "reading"), *times.medians("pair", settings.run.images)]
    return Result(rows + _reading_rows(times), raw)


def _reading_rows(times: Times, case: str = "") -> list[Row]:
    return [
        Row(f"reading / decoding{case}", times.ratio("decoding", "reading"), "", 0.9, True),
        Row(f"Pairs.views / decoding{case}", times.ratio("decoding", "Pairs.views")),
        Row(f"reading / decoding, CPU seconds{case}", times.cpu_ratio("decoding", "reading")),
    ]


def reading(settings: Settings, rounds: int) -> Times:
    """Seconds to read all pairs of a run, to get them only, to decode them only."""
    data = settings.data
    pairs = Pairs(data.train, data.size_px, data.memory_budget_mib)
    assert not pairs.fits, "this budget would keep the decoded pairs"
    order = Order(pairs.labels(pairs.label_names), settings.run.seed, data.balanced_labels)
    order_rows = [order.row(position) for position in range(settings.run.images)]
    table = pq.read_table(pairs.source, columns=["condition", "target"])
    sides = [pc.struct_field(table[side], "bytes").to_pylist() for side in table.column_names]
    pictures = [side[row] for row in order_rows for side in sides]

    def read(_: int) -> None:
        count = sum(len(batch.label) for batch in read_batches(pairs, settings, 0, 0, 1))
        assert 2 * count == len(pictures)

    def view(_: int) -> None:
        for row in order_rows:
            pairs.views(row)

    def decode(_: int) -> None:
        for picture in pictures:
            decode_image(picture, "picture", data.size_px)

    return in_turns({"reading": read, "Pairs.views": view, "decoding": decode}, rounds, warm=(0,))


def pack_folder(folder: Path) -> tuple[dict[str, Any], float]:
    """What `aalnet data pack --json` says, and its seconds from start to end."""
    command = [sys.executable, "-m", "aalnet", "data", "pack", str(folder / "pictures")]
    command += ["--out", str(folder / "set"), "--workers", "2", "--json"]
    started_s = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), time.perf_counter() - started_s


# Eight ways to make a pair unusable: by its picture and the paths of its condition and target.
SPOILS: tuple[Callable[[Image.Image, Path, Path], object], ...] = (
    lambda picture, condition, target: target.write_bytes(b""),
    lambda picture, condition, target: condition.write_bytes(b"no picture"),
    lambda picture, condition, target: target.unlink(),
    lambda picture, condition, target: picture.convert("RGBA").save(target),
    lambda picture, condition, target: picture.resize((32, 31)).save(condition),
    lambda picture, condition, target: picture.resize((40, 40)).save(condition),
    lambda picture, condition, target: condition.write_bytes(condition.read_bytes()[:-60]),
    lambda picture, condition, target: picture.convert("L").save(target),
)


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
            SPOILS[i // BAD_EVERY % len(SPOILS)](picture, condition, target)
    return bad

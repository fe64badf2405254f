"""The wait is that of the real loop, demo settings, two plain gloo processes, from its own log: the
share of an iteration spent waiting for the batch, median over cycles of 16 steps, the first left
out. Reading is `read_batches` drained by an idle consumer, with one thread that decodes, mirrors,
shifts, draws noise and stacks; decoding is `decode_image` alone over the same pictures in
a tight loop of one thread; `Pairs.views` is what lies between: find, decode and check a pair, no
more. They take turns, and the figure is the ratio of the rates' medians, and that of CPU seconds.
Neither case holds decoded pictures: they are read from the data set's file where they lie."""

from __future__ import annotations

import time

import pyarrow.compute as pc
import pyarrow.parquet as pq

from aalnet.settings import Settings
from benchmarks.speed.loops import loop_settings, plain_loop, wait_share
from benchmarks.speed.steps import CYCLE, Seconds, demo, medians, ratio
from benchmarks.table import Result, Row
from cluster.data.order import Order
from cluster.data.pairs import Pairs
from cluster.data.pictures import decode_image
from cluster.data.reader import read_batches

WAIT_BAR_PERCENT = 1.0
READ_BAR = 0.9
CASES = {  # size_px, memory_budget_mib: too little for the decoded pictures
    "64 px, pictures in their file": (64, 8),
    "32 px, pictures in their file": (32, 1),
}


def measure(quick: bool) -> Result:
    """Does data keep the loop waiting, and how fast can it be read?"""
    waited = wait_share(plain_loop(loop_settings((2 if quick else 6) * CYCLE, quick=quick)))
    rows = [Row("data wait / iteration", 100 * waited, "%", bar=WAIT_BAR_PERCENT)]
    raw: list[str] = []
    for name, (size_px, budget_mib) in CASES.items():
        images = 240 if quick else 1440
        settings = demo(
            f"run.images={images}",
            f"data.size_px={size_px}",
            f"data.memory_budget_mib={budget_mib}",
        )
        seconds, cpu_seconds = reading(settings, rounds=1 if quick else 7)
        read, paired = (ratio(seconds, "decoding", way) for way in ("reading", "Pairs.views"))
        rows += [
            Row(
                f"reading / decoding, {name}",
                read,
                bar=READ_BAR,
                at_least=True,
            ),
            Row(f"Pairs.views / decoding, {name}", paired),
        ]
        raw += [f"{name}: {line}" for line in medians(seconds, "pair", images)]
        cpu = ratio(cpu_seconds, "decoding", "reading")
        rows.append(Row(f"reading / decoding, CPU seconds, {name}", cpu))
    return Result(rows, raw)


def reading(settings: Settings, rounds: int) -> tuple[Seconds, Seconds]:
    """Wall and CPU seconds to read all pairs of a run, to get them only, to decode them only."""
    data = settings.data
    pairs = Pairs(data.train, data.size_px, data.memory_budget_mib)
    assert not pairs.fits, "this budget would keep the decoded pairs"
    labels = pairs.labels(pairs.label_names)
    order = Order(labels, settings.run.seed, data.balanced_labels)
    order_rows = [order.row(position) for position in range(settings.run.images)]
    pictures = encoded(pairs, order_rows)

    def read() -> None:
        count = sum(len(batch.label) for batch in read_batches(pairs, settings, 0, 0, 1))
        assert 2 * count == len(pictures)

    def view() -> None:
        for row in order_rows:
            pairs.views(row)

    def decode() -> None:
        for picture in pictures:
            decode_image(picture, "picture", data.size_px)

    ways = {"reading": read, "Pairs.views": view, "decoding": decode}
    wall: Seconds = {name: [] for name in ways}
    cpu: Seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started_s, cpu_started_s = time.perf_counter(), time.process_time()
            way()
            if number:  # the first is warm-up
                wall[name].append(time.perf_counter() - started_s)
                cpu[name].append(time.process_time() - cpu_started_s)
    return wall, cpu


def encoded(pairs: Pairs, order_rows: list[int]) -> list[bytes]:
    """Both pictures of these rows as they stand in the files."""
    table = pq.read_table(pairs.source, columns=["condition", "target"])
    sides = [pc.struct_field(table[side], "bytes").to_pylist() for side in table.column_names]
    return [side[row] for row in order_rows for side in sides]

"""`aalnet data inspect`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from aalnet.errors import DataError
from cluster.data.pictures import open_picture, png
from cluster.data.rows import OpenFile, read_rows
from cluster.data.shards import PICTURES, Index, Shard, list_shards, read_index
from cluster.storage.location import open_store

SPLITS = ("train", "test")
SHEET_LABELS, SHEET_PAIRS, SHEET_PX = 24, 4, 64  # rows, pairs in a row, side of a picture
HEAD_PX = 140  # of a row's label
OnProgress = Callable[[int, int], None]  # pairs done, pairs in all


@dataclass(frozen=True)
class Problem:
    """Something to be mended."""

    split: str
    id: str
    reason: str


@dataclass
class Split:
    """What one part of a data set holds."""

    shards: int = 0
    bytes: int = 0
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # `64 px RGB -> RGB`: condition, target
    condition_bytes: int = 0
    target_bytes: int = 0


@dataclass
class Inspection:
    """All of a data set."""

    source: str
    splits: dict[str, Split] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    samples: dict[str, list[tuple[Image.Image, Image.Image]]] = field(default_factory=dict)


def inspect(source: str, progress: OnProgress) -> Inspection:
    """Read every row of a file, a folder of shards, or a folder with train/ and test/."""
    report = Inspection(source)
    parts = _parts(source)
    total = 0
    indexed: list[tuple[str, Shard, Index]] = []
    for split, shards in parts.items():
        about = report.splits[split] = Split(shards=len(shards), bytes=sum(s.bytes for s in shards))
        for shard in shards:
            try:
                index = read_index(shard)
            except DataError as error:
                report.problems.append(Problem(split, "", str(error)))
                continue
            indexed.append((split, shard, index))
            about.rows += len(index.ids)
            total += len(index.ids)
    reader = _Reader(report)
    for split, shard, index in indexed:
        first = 0
        for number, (rows, _) in enumerate(index.groups):
            span = slice(first, first + rows)
            if rows:
                reader.group(split, shard, number, index.ids[span], index.labels[span])
            first += rows
            reader.done += rows
            progress(reader.done, total)
    if not total and not report.problems:
        raise DataError(f"data set `{source}` has no rows; pack it anew")
    return report


class _Reader:
    """Reads row groups, and remembers ids and contents over all of them."""

    def __init__(self, report: Inspection) -> None:
        self.report = report
        self.done = 0  # pairs
        self._ids: dict[str, str] = {}  # id: split
        self._contents: dict[bytes, tuple[str, str]] = {}  # digest of pixels: split, id
        self._commonest: tuple[str, str] | None = None

    def group(
        self, split: str, shard: Shard, number: int, ids: list[str | None], labels: list[str | None]
    ) -> None:
        """Check all pairs of a row group."""
        try:
            rows = read_rows(shard, number, len(ids))
        except DataError as error:
            self._problem(split, "", f"row group {number}: {error}")
            return
        for row, (name, label) in enumerate(zip(ids, labels, strict=True)):
            if not name or not label:
                self._problem(split, name or "", f"row {row} of group {number} has no id or label")
                continue
            self.report.splits[split].labels[label] += 1
            self._check_id(split, name)
            try:
                self._pair(split, name, label, rows.pictures(row, OpenFile))
            except DataError as error:
                self._problem(split, name, str(error))

    def _pair(self, split: str, name: str, label: str, files: list[bytes | None]) -> None:
        pictures = []
        for side, data in zip(PICTURES, files, strict=True):
            if not data:
                raise DataError(f"{side} is empty; pack it anew")
            pictures.append(open_picture(data, side))
        condition, target = pictures
        about = self.report.splits[split]
        about.condition_bytes += len(files[0] or b"")
        about.target_bytes += len(files[1] or b"")
        about.sizes[f"{condition.width} px, {condition.mode} -> {target.mode}"] += 1
        if condition.width != target.width:
            raise DataError(
                f"condition is {condition.width} px, target {target.width} px; pairs must be "
                "aligned pixel by pixel"
            )
        modes = (condition.mode, target.mode)
        self._commonest = self._commonest or modes
        if modes != self._commonest:
            raise DataError(
                f"is {modes[0]} -> {modes[1]}, the first pair {' -> '.join(self._commonest)}; all "
                "must be alike"
            )
        pixels = hashlib.sha256()
        for picture in pictures:
            pixels.update(f"{picture.mode} {picture.width} ".encode() + picture.tobytes())
        before = self._contents.setdefault(pixels.digest(), (split, name))
        if before[0] != split:
            self._problem(split, name, f"has the same pictures as `{before[1]}` in {before[0]}")
        samples = self.report.samples.setdefault(label, [])
        if len(samples) < SHEET_PAIRS:
            samples.append((_small(condition), _small(target)))

    def _check_id(self, split: str, name: str) -> None:
        before = self._ids.get(name)
        self._ids[name] = split
        if before is not None:
            where = "twice" if before == split else f"in {before} too"
            self._problem(split, name, f"this id is there {where}")

    def _problem(self, split: str, name: str, reason: str) -> None:
        self.report.problems.append(Problem(split, name, reason))


def contact_sheet(report: Inspection) -> bytes:
    """A PNG: a line for each label, each pair as condition and target."""
    labels = sorted(report.samples)[:SHEET_LABELS]
    width = HEAD_PX + SHEET_PAIRS * (2 * SHEET_PX + 8)
    sheet = Image.new("RGB", (width, max(1, len(labels)) * (SHEET_PX + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, label in enumerate(labels):
        top = line * (SHEET_PX + 8) + 4
        text = label if len(label) <= 20 else f"{label[:19]}…"
        draw.text((4, top + SHEET_PX // 2 - 6), text, "black")
        for column, pair in enumerate(report.samples[label]):
            left = HEAD_PX + column * (2 * SHEET_PX + 8)
            for side, picture in enumerate(pair):
                sheet.paste(picture, (left + side * SHEET_PX, top))
    return png(sheet)


def _parts(source: str) -> dict[str, list[Shard]]:
    """Shards by split; a single file or a folder of shards is one part named by itself."""
    if source.rstrip("/").endswith(".parquet"):
        return {"data": list_shards(source)}
    whole = source.rstrip("/") or "/"
    store = open_store(whole)
    folders = store.folders("")
    parts: dict[str, list[Shard]] = {}
    for split in SPLITS:
        name = split if split in folders else f"{split}.parquet"
        if split in folders or name in store.keys(name):
            parts[split] = list_shards(f"{whole}/{name}")
    return parts or {"data": list_shards(source)}


def _small(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((SHEET_PX, SHEET_PX), Image.Resampling.BOX)

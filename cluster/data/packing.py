"""One shard of `aalnet data pack`: pictures read and checked, Parquet and its manifest written.

Knows no Ray: a plan is plain data, and packing it twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from aalnet.errors import DataError
from cluster.data.pictures import CHANNELS, FORMATS, check_picture, open_picture, png, resized
from cluster.data.shards import S3
from cluster.data.sources import PairFiles, Rejected
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing, Store

FORMAT = 1  # of shards and manifests; another one packs everything anew
LARGEST_FILE_BYTES = 64 * 2**20
GROUP_BYTES, GROUP_ROWS = 8 * 2**20, 1024  # of a row group: what is read and cached at once
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("condition", PICTURE), ("target", PICTURE)]
)
Side = Literal["left", "right"]
Row = tuple[str, str, bytes, bytes]  # id, label, condition, target
KINDS = {"L": "grey (L)", "RGB": "RGB"}


@dataclass(frozen=True)
class Form:
    """What all pairs of a data set have in common."""

    modes: tuple[str, str]  # of condition and target: L or RGB
    size_px: int | None = None  # None: pictures keep their files and sizes
    condition_side: Side = "left"  # of a picture that holds both


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written."""

    out: str
    split: str  # train or test
    number: int
    items: list[PairFiles]
    form: Form

    @property
    def shard_key(self) -> str:
        """Where the Parquet file goes, below `out`."""
        return f"{self.split}/{self.number:05}.parquet"

    @property
    def manifest_key(self) -> str:
        """Where its manifest goes."""
        return f"manifests/{self.split}-{self.number:05}.json"

    @property
    def digest(self) -> str:
        """Changes with everything that decides the shard's content."""
        content = [FORMAT, asdict(self.form), [asdict(item) for item in self.items]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """For a worker process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardPlan:
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["items"] = [PairFiles(**item) for item in values["items"]]
        values["form"]["modes"] = tuple(values["form"]["modes"])
        values["form"] = Form(**values["form"])
        return cls(**values)


def pack_shard(shard: ShardPlan) -> dict[str, Any]:
    """Write a shard, then its manifest, which is returned. Raises StoreError."""
    store = open_store(shard.out)
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for item in shard.items:
        try:
            rows.append(_row(item, shard.form))
        except DataError as error:
            file = item.condition if not item.target else f"{item.condition}, {item.target}"
            rejected.append(Rejected(item.id, file, str(error)))
    labels: dict[str, int] = {}
    for row in rows:
        labels[row[1]] = labels.get(row[1], 0) + 1
    data = parquet(rows)
    store.write(shard.shard_key, data)
    manifest = {
        "format": FORMAT, "digest": shard.digest, "shard": shard.shard_key, "rows": len(rows),
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "labels": labels,
        "rejected": [asdict(one) for one in rejected],
    }  # fmt: skip
    store.write(shard.manifest_key, json.dumps(manifest, indent=1).encode())
    return manifest


def modes_of(item: PairFiles) -> tuple[str, str] | None:
    """The modes of a pair's pictures by their headers; None where they cannot be used."""
    try:
        modes = []
        for uri in (item.condition, item.target or item.condition):
            with Image.open(io.BytesIO(_read(uri)), formats=FORMATS) as image:
                check_picture(image, uri, strict=bool(item.target))
                modes.append(image.mode)
        return (modes[0], modes[1]) if set(modes) <= set(CHANNELS) else None
    except (DataError, OSError, ValueError, SyntaxError):
        return None


def _row(item: PairFiles, form: Form) -> Row:
    """A checked pair. Raises DataError with the reason, where it cannot be used."""
    if item.target:
        files = [_read(item.condition), _read(item.target)]
        names = ("condition", "target")
        pictures = [open_picture(data, name) for data, name in zip(files, names, strict=True)]
    else:
        files = [b"", b""]
        pictures = _halves(_read(item.condition), form.condition_side)
    condition, target = pictures
    if condition.size != target.size:
        raise DataError(
            f"condition is {condition.width} px, target {target.width} px; pairs must be aligned "
            "pixel by pixel"
        )
    for side, picture, mode in zip(("condition", "target"), pictures, form.modes, strict=True):
        if picture.mode != mode:
            raise DataError(
                f"{side} is {KINDS[picture.mode]}, most of the data set's are {KINDS[mode]}; "
                "convert it"
            )
    encoded = [
        _encoded(picture, data, form.size_px) for picture, data in zip(pictures, files, strict=True)
    ]
    return item.id, item.label, encoded[0], encoded[1]


def _encoded(picture: Image.Image, data: bytes, size_px: int | None) -> bytes:
    """The file as it came, where nothing has to be changed; else a PNG."""
    if data and size_px in (None, picture.width):
        return data
    return png(resized(picture, size_px or picture.width))


def _halves(data: bytes, condition_side: Side) -> list[Image.Image]:
    """The two squares of a picture that is twice as wide as high, condition first."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_picture(image, "the picture", strict=False)
            width, height = image.size
            if width != 2 * height:
                raise DataError(
                    f"the picture is {width}x{height}; for two sides it must be twice as wide"
                )
            if image.mode not in CHANNELS:
                raise DataError(
                    f"the picture has mode {image.mode}; it must be grey (L) or RGB: convert it"
                )
            image.load()
            halves = [image.crop((at, 0, at + height, height)) for at in (0, height)]
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        open_picture(data, "the picture", convert_to="RGB")  # says what is wrong with it
        raise DataError(f"the picture cannot be decoded: {error}; replace it") from error
    return halves if condition_side == "left" else halves[::-1]


def _read(uri: str) -> bytes:
    """A picture's file. DataError where it is missing or too large, StoreError where S3 fails."""
    if uri.startswith(S3):
        bucket, _, key = uri.removeprefix(S3).partition("/")
        try:
            data = _bucket(bucket).read_range(key, 0, LARGEST_FILE_BYTES + 1)
        except BlobMissing as error:
            raise DataError(f"`{uri}` does not exist") from error
    else:
        try:
            with open(os.open(uri, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # no pipe blocks
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise DataError(f"`{uri}` is no regular file")
                data = file.read(LARGEST_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"`{uri}` cannot be read: {reason}") from error
    if len(data) > LARGEST_FILE_BYTES:
        raise DataError(f"`{uri}` is larger than {LARGEST_FILE_BYTES // 2**20} MiB; shrink it")
    if not data:
        raise DataError(f"`{uri}` is empty")
    return data


@cache
def _bucket(name: str) -> Store:
    return open_store(f"{S3}{name}")


def parquet(rows: Sequence[Row]) -> bytes:
    """A shard's Parquet file, its pictures as they come."""
    sink = pa.BufferOutputStream()
    # Pictures are compressed already.
    compression = {"id": "zstd", "label": "zstd"}
    with pq.ParquetWriter(
        sink, SCHEMA, compression=compression, use_dictionary=["label"]
    ) as writer:
        for group in _groups(rows):
            ids, labels, *sides = zip(*group, strict=True)
            pictures = [
                pa.StructArray.from_arrays(
                    [pa.array(side, pa.binary()), pa.nulls(len(group), pa.string())],
                    fields=list(PICTURE),
                )
                for side in sides
            ]
            columns = [pa.array(ids, pa.string()), pa.array(labels, pa.string()), *pictures]
            writer.write_table(pa.table(columns, SCHEMA))
    return bytes(sink.getvalue())


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: list[list[Row]] = []
    group_bytes = 0
    for row in rows:
        row_bytes = len(row[2]) + len(row[3])
        full = group_bytes + row_bytes > GROUP_BYTES or (groups and len(groups[-1]) >= GROUP_ROWS)
        if not groups or full:
            groups.append([])
            group_bytes = 0
        groups[-1].append(row)
        group_bytes += row_bytes
    return groups

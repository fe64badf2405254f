"""Pairs of images from Parquet: opened, checked, decoded.

A data set is one Parquet file or a folder of them, with the columns `id` and `label` (string)
and `condition` and `target` (struct with `bytes`: a PNG, JPEG or WebP). All pictures are square
and of one size, grey or RGB; a condition has the size of its target.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from aalnet.errors import DataError
from aalnet.networks import DataSpec

CHANNELS = {"L": 1, "RGB": 3}
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_PX = 4096  # checked from the header, before anything is decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is larger, and warns first
COLUMNS = ("id", "label", "condition", "target")
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # condition [Cx, S, S], target [Cy, S, S]


def decode_image(
    data: bytes, name: str, size_px: int, *, convert_to: str | None = None
) -> tuple[NDArray[np.uint8], int]:
    """One picture as uint8 [C, size_px, size_px], and the width it had.

    `convert_to` (L or RGB) brings another mode or shape into form: on white, centred.

    Raises:
        DataError: not a picture of a known format, not grey or RGB, not square, or too large.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_picture(image, name, strict=convert_to is None)
        image.load()
        if convert_to is not None:
            image = _squared_on_white(image).convert(convert_to)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not a PNG, JPEG or WebP" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{name} cannot be decoded: {reason or 'damaged'}; pack it anew") from error
    original_px = image.width
    if original_px != size_px:
        shrinks = original_px > size_px
        how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
        image = image.resize((size_px, size_px), how)
    pixels = np.array(image)  # writable, unlike the picture's own buffer
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes), original_px


def check_picture(image: Image.Image, name: str, *, strict: bool = True) -> None:
    """Refuse, by its header alone, a picture that is too large or, if strict, out of form."""
    if not 1 <= max(image.size) <= LARGEST_PX:
        raise DataError(
            f"{name} is {image.width}x{image.height}; it may have at most {LARGEST_PX} px a side: "
            "shrink it"
        )
    if strict and image.mode not in CHANNELS:
        raise DataError(f"{name} has mode {image.mode}; it must be grey (L) or RGB: convert it")
    if strict and image.width != image.height:
        raise DataError(f"{name} is {image.width}x{image.height}; it must be square: pad it")


def _squared_on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    side = max(layer.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(layer, ((side - layer.width) // 2, (side - layer.height) // 2))
    return square


@dataclass(frozen=True)
class _RowGroup:
    path: Path
    index: int
    first_row: int
    rows: int


class Pairs:
    """A data set opened for reading. Rows keep the order of the files.

    Decoded pairs stay in memory when all fit into `memory_budget_mib`; otherwise the encoded
    row groups used last do, and pairs are decoded when asked for.
    """

    def __init__(self, source: str, size_px: int, memory_budget_mib: int = 2048) -> None:
        self.source = source
        self.size_px = size_px
        self._groups: list[_RowGroup] = []
        ids: list[str] = []
        labels: list[str] = []
        for path in _parquet_files(source):
            file_ids, file_labels = self._index(path, first_row=len(ids))
            ids += file_ids
            labels += file_labels
        if not ids:
            raise DataError(f"data set `{source}` has no rows; pack it anew")
        missing = [i for i, label in enumerate(labels) if label is None or ids[i] is None]
        if missing:
            raise DataError(f"data set `{source}`: row {missing[0]} has no id or no label")
        self.ids = ids
        self.label_names = tuple(sorted(set(labels)))
        self._labels = labels
        self._group_starts = np.array([group.first_row for group in self._groups])
        self._encoded: OrderedDict[int, list[dict[str, bytes]]] = OrderedDict()
        self._encoded_bytes = 0
        self._budget_bytes = memory_budget_mib * 2**20
        condition, target = self._decode(0)
        self.channels = (condition.shape[0], target.shape[0])
        self._decoded: Pair | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spec(self) -> DataSpec:
        """What networks must know of this data set."""
        return DataSpec(self.label_names, *self.channels)

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The label of every row as an index into `names`.

        Raises:
            DataError: a row has a label that `names` lacks.
        """
        known = {name: i for i, name in enumerate(names)}
        unknown = [label for label in self.label_names if label not in known]
        if unknown:
            raise DataError(
                f"data set `{self.source}` has the label `{unknown[0]}`, which the model was not "
                f"trained on; it knows {', '.join(names)}"
            )
        return np.array([known[label] for label in self._labels], dtype=np.int64)

    def require_channels(self, channels: tuple[int, int]) -> None:
        """Raises DataError unless conditions and targets have these many channels."""
        if self.channels != channels:
            raise DataError(
                f"data set `{self.source}` has {self.channels[0]} condition and "
                f"{self.channels[1]} target channels, the model has {channels[0]} and "
                f"{channels[1]}; pack it alike"
            )

    @property
    def fits(self) -> bool:
        """Do all decoded pairs fit the memory budget?"""
        return len(self) * sum(self.channels) * self.size_px**2 <= self._budget_bytes

    def preload(self, threads: int = 2) -> None:
        """Decode everything now, if it fits."""
        if not self.fits or self._decoded is not None:
            return
        shape = (self.size_px, self.size_px)
        conditions = np.empty((len(self), self.channels[0], *shape), np.uint8)
        targets = np.empty((len(self), self.channels[1], *shape), np.uint8)

        def fill(row: int) -> None:
            conditions[row], targets[row] = self._decode(row)

        for group in self._groups:
            rows = range(group.first_row, group.first_row + group.rows)
            self._group_of(group.first_row)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, rows))
        self._decoded = (conditions, targets)
        self._encoded.clear()

    def pair(self, row: int) -> Pair:
        """condition uint8 [Cx, S, S] and target uint8 [Cy, S, S] of one row."""
        if self._decoded is not None:
            return self._decoded[0][row], self._decoded[1][row]
        return self._decode(row)

    def _index(self, path: Path, first_row: int) -> tuple[list[str], list[str]]:
        """Remember a file's row groups; give its ids and labels."""
        try:
            with pq.ParquetFile(path) as file:
                _check_schema(path, file.schema_arrow)
                for index in range(file.num_row_groups):
                    rows = file.metadata.row_group(index).num_rows
                    if rows:
                        self._groups.append(_RowGroup(path, index, first_row, rows))
                    first_row += rows
                table = file.read(columns=["id", "label"])
                return table.column("id").to_pylist(), table.column("label").to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(_unreadable(path, error)) from error

    def _decode(self, row: int) -> Pair:
        number, group = self._group_of(row)
        encoded = group[row - int(self._group_starts[number])]
        pictures: list[NDArray[np.uint8]] = []
        sizes_px: list[int] = []
        for side in ("condition", "target"):
            name = f"{side} of `{self.ids[row]}` in `{self.source}`"
            if encoded[side] is None:
                raise DataError(f"{name} is empty; pack it anew")
            picture, size_px = decode_image(encoded[side], name, self.size_px)
            pictures.append(picture)
            sizes_px.append(size_px)
        if sizes_px[0] != sizes_px[1]:
            raise DataError(
                f"`{self.ids[row]}` in `{self.source}`: condition is {sizes_px[0]} px, target "
                f"{sizes_px[1]} px; pairs must be aligned pixel by pixel"
            )
        channels = (pictures[0].shape[0], pictures[1].shape[0])
        if channels != getattr(self, "channels", channels):
            raise DataError(
                f"`{self.ids[row]}` in `{self.source}` has {channels[0]} condition and "
                f"{channels[1]} target channels, the first row {self.channels[0]} and "
                f"{self.channels[1]}; all rows must be alike"
            )
        return pictures[0], pictures[1]

    def _group_of(self, row: int) -> tuple[int, list[dict[str, bytes]]]:
        """The row group that holds a row, encoded, kept while the budget allows."""
        number = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        if number in self._encoded:
            self._encoded.move_to_end(number)
            return number, self._encoded[number]
        group = self._groups[number]
        rows = list(_read_group(group))
        self._encoded[number] = rows
        self._encoded_bytes += _size(rows)
        while self._encoded_bytes > self._budget_bytes and len(self._encoded) > 1:
            _, dropped = self._encoded.popitem(last=False)
            self._encoded_bytes -= _size(dropped)
        return number, rows


def _size(rows: list[dict[str, bytes]]) -> int:
    return sum(len(data or b"") for row in rows for data in row.values())


def _read_group(group: _RowGroup) -> Iterator[dict[str, bytes]]:
    try:
        with pq.ParquetFile(group.path) as file:
            table = file.read_row_group(group.index, columns=["condition", "target"])
            if table.num_rows != group.rows:
                raise OSError(f"{table.num_rows} rows where {group.rows} should be")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(_unreadable(group.path, error)) from error
    columns = [pc.struct_field(table.column(side), "bytes") for side in COLUMNS[2:]]
    for condition, target in zip(*(column.to_pylist() for column in columns), strict=True):
        yield {"condition": condition, "target": target}


def _parquet_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"data set folder `{source}` holds no .parquet file")
        return files
    if not path.exists():
        raise DataError(
            f"data set `{source}` does not exist (looked in {Path.cwd()}); check data.train and "
            "data.test"
        )
    return [path]


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for name in COLUMNS:
        if name not in schema.names:
            raise DataError(f"`{path}` has no column `{name}`; it needs {', '.join(COLUMNS)}")
        kind = schema.field(name).type
        picture = name in COLUMNS[2:]
        if not picture and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"column `{name}` of `{path}` must be string, is {kind}")
        if picture and not (pa.types.is_struct(kind) and _holds_bytes(kind)):
            raise DataError(f"column `{name}` of `{path}` must be a struct with `bytes`, is {kind}")


def _holds_bytes(kind: pa.StructType) -> bool:
    at = kind.get_field_index("bytes")
    return at >= 0 and kind[at].type in (pa.binary(), pa.large_binary())


def _unreadable(path: Path, error: Exception) -> str:
    empty = path.exists() and path.stat().st_size == 0
    reason = "the file is empty" if empty else " ".join(str(error).split())
    return f"`{path}` is not a whole Parquet file ({reason}); copy or pack it anew"

"""What `aalnet data pack` can be given: folders of pairs, side-by-side pictures, lists of paths.

Everything that cannot be a pair is listed with its reason, never left out in silence.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from aalnet.errors import DataError
from cluster.data.shards import S3
from cluster.data.walk import PICTURE, File, Walk, file_at
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing

Layout = Literal["tree", "side-by-side", "list"]
LIST_ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet")
LIST_COLUMNS = ("id", "label", "condition", "target")
SIDES = ("condition", "target")
SIDE = re.compile(r"\.(condition|target)\.(?:png|jpe?g|webp)$", re.IGNORECASE)
NO_LABELS = frozenset({"", "nan"})


@dataclass(frozen=True)
class PairFiles:
    """A pair to be packed. `target` is empty where one picture holds both sides."""

    id: str
    label: str
    condition: str  # path or s3:// URI
    target: str
    bytes: int  # of both files, 0 where it is not known
    stamp: str  # changes when a file does, where it is known


@dataclass(frozen=True)
class Rejected:
    """Something that is left out, and why."""

    id: str
    file: str
    reason: str


@dataclass
class Listing:
    """Pairs of a source, and what is left out."""

    layout: Layout
    items: list[PairFiles] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    passed_over: int = 0  # files that are no pictures, or hidden
    _ids: set[str] = field(default_factory=set)

    def reject(self, name: str, file: str, reason: str) -> None:
        """Leave something out, with the reason."""
        self.rejected.append(Rejected(name, file, reason))

    def admit(self, item: PairFiles) -> None:
        """Take a pair, or reject it for its id or label."""
        reason = _flaw("id", item.id) or _flaw("label", item.label)
        if reason is None and item.id in self._ids:
            reason = "another pair has this id already; give each its own"
        if reason is None:
            self._ids.add(item.id)
            self.items.append(item)
        else:
            self.reject(item.id, item.condition, reason)


def list_source(
    source: str, layout: Layout | None = None, label: str | None = None, out: str = ""
) -> Listing:
    """The pairs of a source, sorted by id. The folder `out` is not looked into.

    Raises:
        DataError: the source is missing, or its layout is not to be seen from its names.
    """
    if layout == "list" or (layout is None and source.lower().endswith(LIST_ENDINGS)):
        listing = Listing("list")
        _from_list(source, label, listing)
    else:
        listing = Listing("tree")
        walk = Walk(source, out)
        pictures = [file for file in walk.files() if PICTURE.search(file.name)]
        listing.passed_over = walk.count - len(pictures)
        for path, reason in walk.rejected:
            listing.reject("", path, reason)
        if not pictures:
            raise DataError(
                f"`{source}` holds no PNG, JPEG or WebP picture; name a folder of pictures, or a "
                f"list ({', '.join(LIST_ENDINGS)})"
            )
        paired = any(SIDE.search(file.name) for file in pictures)
        listing.layout = layout or ("tree" if paired else "side-by-side")
        (_from_tree if listing.layout == "tree" else _from_halves)(pictures, label, listing)
    listing.items.sort(key=lambda item: item.id)
    return listing


def _from_tree(pictures: Iterable[File], label: str | None, listing: Listing) -> None:
    groups: dict[str, dict[str, list[File]]] = {}
    for file in pictures:
        side = SIDE.search(file.name)
        if side is None:
            listing.reject("", file.uri, "its name ends neither in .condition nor .target")
        else:
            sides = groups.setdefault(file.name[: side.start()], {})
            sides.setdefault(side.group(1).lower(), []).append(file)
    for stem, sides in sorted(groups.items()):
        first = next(iter(sides.values()))[0]
        missing = [side for side in SIDES if side not in sides]
        double = [side for side in SIDES if len(sides.get(side, [])) > 1]
        if missing:
            listing.reject(_plain(stem), first.uri, f"has no {missing[0]} beside it")
        elif double:
            listing.reject(_plain(stem), first.uri, f"has two files as its {double[0]}")
        else:
            condition, target = (sides[side][0] for side in SIDES)
            named = label if label is not None else _folder_of(stem)
            listing.admit(_item(_plain(stem), named, condition, target))


def _from_halves(pictures: Iterable[File], label: str | None, listing: Listing) -> None:
    for file in pictures:
        stem = _plain(PICTURE.sub("", file.name))
        named = label if label is not None else _folder_of(file.name)
        listing.admit(PairFiles(stem, _plain(named), file.uri, "", file.bytes, file.stamp))


def _from_list(source: str, label: str | None, listing: Listing) -> None:
    folder = source.rpartition("/")[0] if source.startswith(S3) else os.path.dirname(source)
    for number, row in enumerate(_rows(source), start=1):
        name = _text(row.get("id"))
        if row.get("id") is None or not name:
            listing.reject("", f"{source}, row {number}", "has no id")
            continue
        paths = {side: _text(row.get(side)) for side in SIDES}
        missing = [side for side, path in paths.items() if not path]
        if missing:
            listing.reject(name, f"{source}, row {number}", f"names no {missing[0]}")
            continue
        condition, target = (file_at(folder, path) for path in paths.values())
        named = label if label is not None else _text(row.get("label"))
        listing.admit(_item(name, named, condition, target))


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    folder, _, name = source.rpartition("/")
    try:
        data = open_store(folder or ("/" if source.startswith("/") else ".")).read(name)
    except BlobMissing as error:
        raise DataError(f"list `{source}` does not exist, or is no file") from error
    try:
        if name.lower().endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            _require_columns(source, table.column_names)
            yield from table.select(
                [c for c in LIST_COLUMNS if c in table.column_names]
            ).to_pylist()
        elif name.lower().endswith(".csv"):
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            _require_columns(source, reader.fieldnames or [])
            yield from reader
        else:
            lines = data.decode("utf-8-sig").splitlines()
            for number, line in enumerate(filter(str.strip, lines), start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"`{source}`, line {number} is no JSON object")
                if number == 1:
                    _require_columns(source, row)
                yield row
    except (
        pa.ArrowException,
        OSError,
        UnicodeDecodeError,
        csv.Error,
        json.JSONDecodeError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"list `{source}` cannot be read ({reason}); write it anew") from error


def _require_columns(source: str, names: Iterable[str]) -> None:
    missing = [column for column in LIST_COLUMNS if column not in set(names)]
    if missing:
        raise DataError(
            f"list `{source}` has no column `{missing[0]}`; it needs {', '.join(LIST_COLUMNS)}"
        )


def _item(name: str, label: str, condition: File, target: File) -> PairFiles:
    size = condition.bytes + target.bytes
    stamp = f"{condition.stamp} {target.stamp}"
    return PairFiles(name, _plain(label), condition.uri, target.uri, size, stamp)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0].rpartition("/")[2]


def _plain(text: str) -> str:
    """One form for names that look alike; some systems take accents apart."""
    return unicodedata.normalize("NFC", text.strip())


def _text(value: Any) -> str:
    """A cell as text; empty for what stands for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas makes floats of whole numbers beside empty cells
    return _plain(str(value))


def _flaw(what: str, text: str) -> str | None:
    if what == "label" and text.lower() in NO_LABELS:
        return "has no label; put it into a folder of that name or use --label"
    if not text:
        return f"has no {what}"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return f"its {what} is not UTF-8; rename it"
    if not text.isprintable():
        return f"its {what} has control characters; rename it"
    return None

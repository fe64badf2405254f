"""Damaged and unusable files and pictures are refused by name, in one line; never worse."""

import contextlib
import io
import random
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aalnet.errors import DataError
from cluster.data.pairs import Pairs
from cluster.data.pictures import LARGEST_PX, decode_image
from cluster.data.shards import UNFINISHED
from tests.support.hostile import handmade_png, packed_zeros
from tests.support.pair_checks import read_all, refused
from tests.support.tiny_runs import SCHEMA, encoded, noise_picture, noise_rows, write_pairs

# Files that cannot be used


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    absent = tmp_path / "absent.parquet"
    refused(lambda: Pairs(str(absent), 32), str(absent), "does not exist")
    refused(lambda: Pairs(str(tmp_path), 32), str(tmp_path), "no .parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,label\n1,a\n", b"PAR1" * 100])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    message = refused(lambda: Pairs(str(path), 32), str(path), "Parquet")
    assert ("empty" in message) == (content == b"")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(6))
    path.write_bytes(path.read_bytes()[:-200])
    refused(lambda: Pairs(str(path), 32), str(path), "Parquet")


def test_a_folder_named_as_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "data" / "x.parquet").mkdir(parents=True)
    refused(lambda: Pairs(str(tmp_path / "data"), 32), "x.parquet")


def test_a_folder_that_is_still_being_packed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x.parquet", noise_rows(3))
    (tmp_path / UNFINISHED).write_bytes(b"{}")
    refused(lambda: Pairs(str(tmp_path), 32), str(tmp_path), "not whole", "data pack")


def test_no_rows(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", [])
    refused(lambda: Pairs(str(path), 32), str(path), "no rows")


@pytest.mark.parametrize("column", ["id", "label", "condition", "target"])
def test_a_missing_column_and_one_of_another_type(tmp_path: Path, column: str) -> None:
    table = pq.read_table(write_pairs(tmp_path / "x.parquet", noise_rows(2)))
    path = tmp_path / "y.parquet"
    pq.write_table(table.drop_columns([column]), path)
    refused(lambda: Pairs(str(path), 32), str(path), f"`{column}`")
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, pa.array([1, 2])), path)
    refused(lambda: Pairs(str(path), 32), str(path), f"`{column}`", "int64")


@pytest.mark.parametrize(
    "kind", [pa.struct([("path", pa.string())]), pa.struct([("bytes", pa.int64())]), pa.binary()]
)
def test_a_picture_column_without_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    table = pq.read_table(write_pairs(tmp_path / "x.parquet", noise_rows(2)))
    path = tmp_path / "y.parquet"
    pq.write_table(table.set_column(3, "target", pa.nulls(2, kind)), path)
    refused(lambda: Pairs(str(path), 32), str(path), "`target`", "bytes")


@pytest.mark.parametrize("column", ["id", "label"])
def test_a_null_id_or_label(tmp_path: Path, column: str) -> None:
    rows = noise_rows(5)
    rows[3][column] = None
    path = write_pairs(tmp_path / "x.parquet", rows)
    refused(lambda: Pairs(str(path), 32), str(path), "row 3")


@pytest.mark.parametrize("side", ["condition", "target"])
def test_null_bytes_and_a_null_struct(tmp_path: Path, side: str) -> None:
    rows = noise_rows(5)
    rows[3][side] = None
    path = write_pairs(tmp_path / "x.parquet", rows)
    refused(lambda: Pairs(str(path), 32).pair(3), "`row-3`", side)
    wrapped = [
        row | {"condition": {"bytes": row["condition"]}, "target": {"bytes": row["target"]}}
        for row in noise_rows(5)
    ]
    wrapped[3][side] = None
    pq.write_table(pa.Table.from_pylist(wrapped, SCHEMA), path)
    refused(lambda: Pairs(str(path), 32).pair(3), "`row-3`", side)


# Pictures that cannot be used


def truncated(kind: str) -> bytes:
    return encoded(noise_picture(5), kind)[:-300]


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "PNG, JPEG or WebP"),
    "text": (lambda: b"hello, I am no picture", "PNG, JPEG or WebP"),
    "gif": (lambda: encoded(noise_picture(5), "GIF"), "PNG, JPEG or WebP"),
    "tiff": (lambda: encoded(noise_picture(5), "TIFF"), "PNG, JPEG or WebP"),
    "truncated png": (lambda: truncated("PNG"), "cannot be decoded"),
    "truncated jpeg": (lambda: truncated("JPEG"), "cannot be decoded"),
    "truncated webp": (lambda: truncated("WEBP"), "cannot be decoded"),
    "png signature": (lambda: b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    "rgba": (lambda: encoded(Image.new("RGBA", (32, 32))), "RGBA"),
    "palette": (lambda: encoded(Image.new("P", (32, 32))), "mode P"),
    "16 bit": (lambda: encoded(Image.new("I;16", (32, 32))), "I;16"),
    "bilevel": (lambda: encoded(Image.new("1", (32, 32))), "mode 1"),
    "cmyk": (lambda: encoded(Image.new("CMYK", (32, 32)), "JPEG"), "CMYK"),
    "not square": (lambda: encoded(Image.new("RGB", (32, 31))), "32x31"),
    "other size": (lambda: encoded(noise_picture(5, 40)), "40 px"),
    "grey": (lambda: encoded(noise_picture(5, channels=1)), "channels"),
    "no pixels": (lambda: handmade_png(32, 32), "cannot be decoded"),
    "0 px": (lambda: handmade_png(0, 0), "cannot be decoded"),
    "5,000 px": (lambda: handmade_png(5_000, 5_000), f"at most {LARGEST_PX} px"),
    "12,000 px": (lambda: handmade_png(12_000, 12_000), f"at most {LARGEST_PX} px"),
    "60,000 px": (lambda: handmade_png(60_000, 60_000), "60000x60000"),
    "long": (lambda: handmade_png(5_000, 1), "5000x1"),
}


@pytest.mark.parametrize("side", ["condition", "target"])
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path, case: str, side: str) -> None:
    make, word = UNUSABLE[case]
    rows = noise_rows(5)
    rows[3][side] = make()
    path = write_pairs(tmp_path / "x.parquet", rows)
    pairs = Pairs(str(path), 32)
    refused(lambda: pairs.pair(3), "`row-3`", str(path), word)
    refused(pairs.preload, "`row-3`", str(path), word)
    assert len(pairs.pair(4)) == 2, "the other rows are still good"


def test_the_first_picture_is_checked_on_opening(tmp_path: Path) -> None:
    rows = noise_rows(2)
    rows[0]["target"] = b"no picture"
    path = write_pairs(tmp_path / "x.parquet", rows)
    refused(lambda: Pairs(str(path), 32), "`row-0`", "PNG, JPEG or WebP")


@pytest.mark.parametrize(
    "bomb",
    [
        lambda data: handmade_png(32, 32, (b"IDAT", data)),
        lambda data: handmade_png(32, 32, (b"iCCP", b"x\0\0" + data), (b"IDAT", b"")),
        lambda data: handmade_png(32, 32, (b"zTXt", b"x\0\0" + data), (b"IDAT", b"")),
        lambda data: handmade_png(32, 32, (b"iTXt", b"x\0\1\0\0\0" + data), (b"IDAT", b"")),
    ],
    ids=["pixels", "profile", "text", "international text"],
)
def test_a_decompression_bomb_fills_no_memory(bomb: Callable[[bytes], bytes]) -> None:
    data = bomb(packed_zeros())
    assert len(data) < 2**19
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):
        pixels, _ = decode_image(data, "bomb", 32)
        assert pixels.shape == (3, 32, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


# Damage at random: a DataError or valid data, never anything else


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """Cut short, or with up to eight bits flipped, or with a stretch overwritten."""
    kind = dice.randrange(3)
    if kind == 0:
        return whole[: dice.randrange(len(whole))]
    found = bytearray(whole)
    if kind == 1:
        for _ in range(dice.randint(1, 8)):
            found[dice.randrange(len(found))] ^= 1 << dice.randrange(8)
        return bytes(found)
    at, length = dice.randrange(len(found)), dice.randint(1, 64)
    found[at : at + length] = dice.randbytes(len(found[at : at + length]))
    return bytes(found)


def test_damaged_files_are_refused_or_give_valid_data(tmp_path: Path) -> None:
    whole = write_pairs(tmp_path / "x.parquet", noise_rows(6, 8), rows_per_group=2).read_bytes()
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    dice = random.Random(20)
    refusals: list[str] = []
    for case in range(400):
        # Half of the damage falls on the footer, which describes all the rest.
        head, tail = (whole[:footer], whole[footer:]) if case % 2 else (b"", whole)
        path = tmp_path / "damaged.parquet"
        path.write_bytes(head + damaged(tail, dice))
        try:
            pairs = Pairs(str(path), 8, memory_budget_mib=case % 3)
            pairs.preload()
            for condition, target in read_all(pairs):
                assert condition.shape == (pairs.channels[0], 8, 8)
                assert target.shape == (pairs.channels[1], 8, 8)
            assert len(pairs.labels(pairs.label_names)) == len(pairs.ids)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert [
        message for message in refusals if "\n" in message or "damaged.parquet" not in message
    ] == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_are_refused_or_give_pixels(kind: str) -> None:
    gradient = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    whole = encoded(np.stack([gradient] * 3, axis=2), kind)
    dice = random.Random(30)
    refusals: list[str] = []
    for case in range(400):
        try:
            pixels, _ = decode_image(damaged(whole, dice), f"case {case}", 16)
            assert pixels.shape in ((3, 16, 16), (1, 16, 16))
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert [line for line in refusals if "\n" in line or not line.startswith("case ")] == []


def test_damage_is_found_by_whoever_reads_the_row(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(6), rows_per_group=2)
    pairs = Pairs(str(path), 32, cache_gib=0)
    path.write_bytes(io.BytesIO(path.read_bytes()).read(2000))
    refused(lambda: pairs.pair(5), str(path))
    path.unlink()
    refused(lambda: pairs.pair(3), str(path))

"""Pairs: whole data sets read right, and every kind of damage refused by name, in one line."""

import contextlib
import io
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aalnet.errors import DataError
from cluster.data.pairs import Pairs
from cluster.data.pictures import LARGEST_PX, decode_image
from cluster.data.shards import UNFINISHED
from cluster.storage.s3 import S3Store
from cluster.storage.store import StoreError, StoreUnavailable
from tests.support.hostile import handmade_png, packed_zeros
from tests.support.s3_server import S3Server, client_of, free_ports
from tests.support.tiny_runs import SCHEMA, Row, encoded, noise_picture, noise_rows, write_pairs

MEMORY_MIB = 1  # the smallest budget: pairs of 64 px and more do not fit


def refused(call: Callable[[], object], *words: str) -> str:
    """The message of the DataError that `call` raises: one line that holds all words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert caught.value.exit_code == 2
    return message


def read_all(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pairs.pair(row) for row in range(len(pairs))]


# Whole data sets


def test_a_folder_is_read_in_the_order_of_its_files_and_rows(tmp_path: Path) -> None:
    rows = noise_rows(11)
    write_pairs(tmp_path / "data" / "b.parquet", rows[:7], rows_per_group=3)
    write_pairs(tmp_path / "data" / "c.parquet", rows[10:], rows_per_group=3)
    write_pairs(tmp_path / "data" / "a.parquet", rows[7:10], rows_per_group=2)
    (tmp_path / "data" / "README.md").write_text("not data")

    pairs = Pairs(str(tmp_path / "data"), 32)

    order = [7, 8, 9, *range(7), 10]
    assert pairs.ids == [f"row-{i}" for i in order]
    assert len(pairs) == 11
    for row, i in enumerate(order):
        condition, target = pairs.pair(row)
        np.testing.assert_array_equal(condition, noise_picture(2 * i).transpose(2, 0, 1))
        np.testing.assert_array_equal(target, noise_picture(2 * i + 1).transpose(2, 0, 1))


def test_an_empty_file_of_a_folder_and_empty_row_groups_are_passed_over(tmp_path: Path) -> None:
    rows = noise_rows(4)
    write_pairs(tmp_path / "a.parquet", [])
    write_pairs(tmp_path / "b.parquet", rows)
    pairs = Pairs(str(tmp_path), 32)
    assert pairs.ids == [row["id"] for row in rows]
    assert len(read_all(pairs)) == 4


def test_labels_are_indices_into_the_names_given(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(7, labels=3))
    pairs = Pairs(str(path), 32)
    assert pairs.label_names == ("a", "b", "c")
    assert pairs.spec.labels == ("a", "b", "c")
    assert pairs.labels(pairs.label_names).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert pairs.labels(("z", "c", "b", "a")).tolist() == [3, 2, 1, 3, 2, 1, 3]
    refused(lambda: pairs.labels(("a", "b")), str(path), "`c`", "a, b")


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_grey_and_rgb(tmp_path: Path, channels: tuple[int, int]) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(3, channels=channels))
    pairs = Pairs(str(path), 32)
    assert pairs.channels == channels
    assert (pairs.spec.condition_channels, pairs.spec.target_channels) == channels
    for condition, target in read_all(pairs):
        assert condition.shape == (channels[0], 32, 32)
        assert target.shape == (channels[1], 32, 32)
        assert condition.dtype == target.dtype == np.uint8
    pairs.require_channels(channels)
    refused(lambda: pairs.require_channels((2, 2)), str(path), "channels")


def test_sizes_are_changed_down_by_averaging_and_up_smoothly(tmp_path: Path) -> None:
    big = np.arange(0, 256, 4).astype(np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    rows: list[Row] = [
        {"id": "down", "label": "a", "condition": encoded(big), "target": encoded(big)},
    ]
    path = write_pairs(tmp_path / "x.parquet", rows)
    condition, _ = Pairs(str(path), 8).pair(0)
    np.testing.assert_array_equal(condition[0], np.arange(0, 256, 4).reshape(8, 8))
    up, _ = Pairs(str(path), 128).pair(0)
    assert up.shape == (1, 128, 128)
    assert np.abs(up[0].astype(int) - np.kron(big, np.ones((2, 2), np.uint8))).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    pixels, size_px = decode_image(encoded(flat, kind), "x", 16)
    assert size_px == 16
    assert np.abs(pixels.astype(int) - flat.transpose(2, 0, 1)).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_convert_brings_any_mode_and_shape_onto_a_white_square(mode: str) -> None:
    image = Image.new("L", (10, 20), 0).convert(mode)
    pixels, size_px = decode_image(
        encoded(image, "JPEG" if mode == "CMYK" else "PNG"), "x", 20, convert_to="RGB"
    )
    assert (pixels.shape, size_px) == ((3, 20, 20), 20)
    assert pixels[:, :, :4].min() > 250
    assert pixels[:, :, 6:14].max() < 30


def test_in_memory_and_lazy_reading_give_the_same_pixels(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "x.parquet", noise_rows(30, 96), rows_per_group=7)
    kept, lazy = Pairs(str(path), 64), Pairs(str(path), 64, memory_budget_mib=0)
    assert kept.fits
    assert not lazy.fits
    kept.preload()
    lazy.preload()  # does nothing: it would not fit
    order = np.random.default_rng(0).permutation(30).tolist()
    for row in order:
        for a, b in zip(kept.pair(row), lazy.pair(row), strict=True):
            np.testing.assert_array_equal(a, b)


def test_lazy_reading_keeps_few_row_groups_and_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = noise_rows(120, 64)
    path = write_pairs(tmp_path / "x.parquet", rows, rows_per_group=10)
    group_bytes = sum(len(row["condition"]) + len(row["target"]) for row in rows[:10])
    room = 2**20 // group_bytes
    assert 2 <= room <= 10, "this test wants room for some groups, not for all 12"

    opened: list[Path] = []
    whole = pq.ParquetFile

    def opens(file: Path, **options: bool) -> pq.ParquetFile:
        opened.append(file)
        return whole(file, **options)

    monkeypatch.setattr(pq, "ParquetFile", opens)
    pairs = Pairs(str(path), 64, memory_budget_mib=MEMORY_MIB, cache_gib=0)
    assert not pairs.fits

    for row in np.random.default_rng(1).integers(0, 120, 300).tolist():
        pairs.pair(row)
        assert sum(pairs._memory_bytes.values()) <= MEMORY_MIB * 2**20
        assert 1 <= len(pairs._rows) <= room
    opened.clear()
    for row in range(120):
        pairs.pair(row)
    assert len(opened) <= 12, "reading in order reads every group once"
    opened.clear()
    for row in range(119, 119 - 10 * (room - 1), -1):
        pairs.pair(row)
    assert opened == [], "the groups used last are still there"


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


def test_pictures_as_large_or_view_types_are_read_too(tmp_path: Path) -> None:
    rows = noise_rows(2)
    wide = pa.struct([("bytes", pa.large_binary())])
    schema = pa.schema([
        ("id", pa.large_string()), ("label", pa.large_string()), ("condition", wide),
        ("target", wide),
    ])  # fmt: skip
    wrapped = [
        row | {"condition": {"bytes": row["condition"]}, "target": {"bytes": row["target"]}}
        for row in rows
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(wrapped, schema), path)
    assert len(read_all(Pairs(str(path), 32))) == 2


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


# From S3


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the store's calls from now on."""
    made: list[str] = []
    for name in ("read", "read_range", "size", "entries"):
        whole = getattr(S3Store, name)

        def counted(*args: Any, _name: str = name, _whole: Any = whole, **options: Any) -> Any:
            made.append(_name)
            return _whole(*args, **options)

        monkeypatch.setattr(S3Store, name, counted)
    return made


def put_shards(server: S3Server, folder: Path, prefix: str) -> list[Row]:
    rows = noise_rows(40, 64)
    for name, part in (("a", rows[:24]), ("b", rows[24:])):
        path = write_pairs(folder / f"{name}.parquet", part, rows_per_group=8)
        put(server, f"{prefix}/{name}.parquet", path.read_bytes())
    return rows


def put(server: S3Server, key: str, data: bytes) -> None:
    client_of(server).put_object(Bucket=server.bucket, Key=key, Body=data)


def test_a_folder_and_a_file_in_s3_are_read_as_on_disk(
    server: S3Server, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(server, tmp_path, "whole")
    put(server, "whole/deeper/c.parquet", b"not of this folder")
    here = Pairs(str(tmp_path), 64)
    made = requests_of(monkeypatch)
    there = Pairs(f"s3://{server.bucket}/whole", 64, memory_budget_mib=0)
    assert (there.ids, there.label_names, there.channels) == (here.ids, here.label_names, (3, 3))
    for row in np.random.default_rng(0).permutation(40).tolist():
        for a, b in zip(here.pair(row), there.pair(row), strict=True):
            np.testing.assert_array_equal(a, b)
    first = len(made)
    assert first <= 1 + 2 * (1 + 3 + 1) + 5 * 2, (
        "a listing, footers, ids and labels, two a row group"
    )

    again = Pairs(f"s3://{server.bucket}/whole/", 64)
    again.preload()
    np.testing.assert_array_equal(again.pair(39)[0], here.pair(39)[0])
    assert len(made) - first == 1, "all but the listing comes from the disk"
    single = Pairs(f"s3://{server.bucket}/whole/b.parquet", 64, cache_gib=0)
    assert single.ids == here.ids[24:]
    np.testing.assert_array_equal(single.pair(15)[1], here.pair(39)[1])


def test_what_is_not_in_s3(server: S3Server, cached: Path) -> None:
    bucket = f"s3://{server.bucket}"
    put(server, "odd/notes.txt", b"x")
    refused(lambda: Pairs(f"{bucket}/absent.parquet", 32), "absent.parquet", "does not exist")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "/odd", "no .parquet")
    put(server, "odd/x.parquet", b"PAR1 but no more")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "odd/x.parquet", "Parquet")
    put(server, f"odd/{UNFINISHED}", b"{}")
    refused(lambda: Pairs(f"{bucket}/odd", 32), "not whole", "data pack")
    with pytest.raises(StoreUnavailable, match="bucket"):
        Pairs("s3://no-such-bucket/data", 32)


def test_a_shard_that_was_damaged_or_removed_in_s3_is_a_data_error(
    server: S3Server, tmp_path: Path, cached: Path
) -> None:
    put_shards(server, tmp_path, "damaged")
    pairs = Pairs(f"s3://{server.bucket}/damaged", 64, memory_budget_mib=0)
    put(server, "damaged/b.parquet", b"x" * 1000)
    refused(lambda: pairs.pair(39), "b.parquet")
    client_of(server).delete_object(Bucket=server.bucket, Key="damaged/b.parquet")
    refused(lambda: pairs.pair(39), "b.parquet", "gone")
    assert len(pairs.pair(0)) == 2


def test_an_outage_is_a_store_error_and_reading_goes_on_after_it(
    server: S3Server, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(server, tmp_path, "outage")
    pairs = Pairs(f"s3://{server.bucket}/outage", 64, memory_budget_mib=0)
    whole = S3Store.read_range

    def fails(*_: object) -> bytes:
        raise StoreError("storage cannot be reached")

    monkeypatch.setattr(S3Store, "read_range", fails)
    assert len(pairs.pair(1)) == 2, "the first row group is here already"
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            pairs.pair(39)
        assert not isinstance(caught.value, DataError)
    monkeypatch.setattr(S3Store, "read_range", whole)
    assert len(pairs.pair(39)) == 2


def test_a_server_that_is_not_there_is_a_store_error(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setattr("cluster.storage.s3_client.ATTEMPTS", 1)
    with pytest.raises(StoreError, match="cannot be reached"):
        Pairs("s3://bucket/data", 32)


def test_a_folder_that_is_still_being_packed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x.parquet", noise_rows(3))
    (tmp_path / UNFINISHED).write_bytes(b"{}")
    refused(lambda: Pairs(str(tmp_path), 32), str(tmp_path), "not whole", "data pack")

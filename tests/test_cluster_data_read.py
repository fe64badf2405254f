"""Whole data sets are read right: order, labels, channels, sizes and formats, in little memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.data.pairs import Pairs
from cluster.data.pictures import decode_image
from tests.support.pair_checks import read_all, refused
from tests.support.tiny_runs import Row, encoded, noise_picture, noise_rows, write_pairs

MEMORY_MIB = 1  # the smallest budget: pairs of 64 px and more do not fit


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


# Memory


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

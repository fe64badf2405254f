"""`aalnet data pack` and `aalnet data inspect`, as a person types them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aalnet.errors import DataError
from cluster.data.inspection import contact_sheet, inspect
from cluster.data.pairs import Pairs
from tests.support.packs import tree
from tests.support.tiny_runs import (
    aalnet,
    encoded,
    noise_picture,
    noise_rows,
    write_data,
    write_pairs,
)


def reasons(source: Path) -> list[str]:
    found = inspect(str(source), lambda *_: None).problems
    return [f"{one.split} {one.id}: {one.reason}" for one in found]


# pack


def test_pack_tells_what_it_did_and_goes_on(tmp_path: Path) -> None:
    source = tree(tmp_path / "pics", 30)
    (source / "a" / "000.target.png").write_bytes(b"\x1b[31mbad")
    (source / "notes.txt").write_text("x")
    done = aalnet("data", "pack", "pics", "--out", "set", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "tree",
        "train",
        "1, see set/rejected.jsonl",
        "1 other files",
        "aalnet data inspect set",
    ):
        assert word in done.stdout
    assert "not a PNG" in done.stdout
    assert len(Pairs(str(tmp_path / "set" / "train"), 16)) > 20
    again = aalnet("data", "pack", "pics", "--out", "set", "--workers", "0", "--json", cwd=tmp_path)
    found = json.loads(again.stdout)
    assert found["shards_done_before"] == found["shards"] == 2
    assert [one["id"] for one in found["rejected"]] == ["a/000"]
    seen = aalnet("data", "inspect", "set", cwd=tmp_path)
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "problems  0" in seen.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["absent", "--out", "set"], "does not exist"),
        (["pics", "--out", "gs://x/y"], "gs:// is not supported"),
        (["pics", "--out", "set", "--layout", "list"], "does not exist"),
        (["pics", "--out", "set", "--size-px", "0"], "size-px"),
        (["pics", "--out", "set", "--test-share", "2"], "test-share"),
        (["pics"], "--out"),
    ],
)
def test_mistakes_of_pack(tmp_path: Path, arguments: list[str], word: str) -> None:
    tree(tmp_path / "pics", 3)
    done = aalnet("data", "pack", *arguments, "--workers", "0", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


# inspect


def test_inspect_counts_and_draws(tmp_path: Path) -> None:
    write_data(tmp_path)
    sheet = tmp_path / "new" / "sheet.png"
    done = aalnet("data", "inspect", ".", "--json", "--out", sheet, cwd=tmp_path)
    # The two files hold the same first rows.
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["splits"]["train"]["rows"] == 13
    assert found["splits"]["train"]["labels"] == {"a": 5, "b": 4, "c": 4}
    assert found["splits"]["test"]["sizes"] == {"32 px, RGB -> RGB": 5}
    assert len(found["problems"]) == 10
    with Image.open(sheet) as image:
        assert image.size == (140 + 4 * 136, 3 * 72)


def test_a_single_file_and_a_folder_of_shards(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x.parquet", noise_rows(5))
    for source in (tmp_path / "x.parquet", tmp_path):
        found = inspect(str(source), lambda *_: None)
        assert list(found.splits) == ["data"]
        assert found.splits["data"].rows == 5
        assert found.problems == []


def test_leaks_between_splits_are_found(tmp_path: Path) -> None:
    rows = noise_rows(8)
    write_pairs(tmp_path / "train" / "0.parquet", rows[:5])
    copy = rows[1] | {"id": "copy"}
    again = rows[2] | {"id": "packed anew"}
    again["condition"] = encoded(Image.open(io.BytesIO(again["condition"])), compress_level=0)
    write_pairs(tmp_path / "test" / "0.parquet", [*rows[5:], copy, again, rows[7]])
    found = reasons(tmp_path)
    assert found == [
        "test copy: has the same pictures as `row-1` in train",
        "test packed anew: has the same pictures as `row-2` in train",
        "test row-7: this id is there twice",
    ]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = noise_rows(8)
    rows[1]["target"] = b"bad"
    rows[2]["target"] = None
    rows[3]["label"] = None
    rows[4]["target"] = encoded(noise_picture(1, 40))
    rows[5]["target"] = encoded(noise_picture(1, channels=1))
    write_pairs(tmp_path / "x.parquet", rows)
    found = reasons(tmp_path)
    words = ["not a PNG", "empty", "no id or label", "40 px", "RGB -> L"]
    assert len(found) == len(words)
    for word in words:
        assert any(word in line for line in found), found


def test_a_damaged_shard_does_not_hide_the_others(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.parquet", noise_rows(6))
    path = write_pairs(tmp_path / "b.parquet", noise_rows(6))
    whole = bytearray(path.read_bytes())
    whole[100:2000] = bytes(1900)
    path.write_bytes(whole)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    found = reasons(tmp_path)
    assert any("b.parquet" in line for line in found)
    assert any("c.parquet" in line for line in found)


def test_a_sheet_of_many_labels_and_long_names(tmp_path: Path) -> None:
    rows = noise_rows(40, 16)
    for i, row in enumerate(rows):
        row["label"] = f"{i:03} {'long ' * 30} caf\u00e9 \U0001f600"
    write_pairs(tmp_path / "x.parquet", rows)
    found = inspect(str(tmp_path), lambda *_: None)
    assert found.problems == []
    pixels = np.array(Image.open(io.BytesIO(contact_sheet(found))))
    assert pixels.shape == (24 * 72, 140 + 4 * 136, 3)


def test_mistakes_of_inspect(tmp_path: Path) -> None:
    for arguments, word in (
        (["absent.parquet"], "does not exist"),
        (["."], "no .parquet"),
        ([".", "--out", "sheet.jpg"], ".png"),
    ):
        done = aalnet("data", "inspect", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert word in done.stderr
    with pytest.raises(DataError):
        inspect(str(tmp_path / "absent"), lambda *_: None)

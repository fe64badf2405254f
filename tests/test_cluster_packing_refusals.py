"""`aalnet data pack`: a useless source is refused, a bad pair left out by name and reason."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from aalnet.errors import DataError
from cluster.data.pairs import Pairs
from tests.support.hostile import handmade_png, packed_zeros
from tests.support.packs import packed, reasons, rows_of, tree
from tests.support.tiny_runs import encoded, noise_picture

# Sources


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("x.csv", "id,label,condition\n1,a,b\n", "`target`"),
        ("x.csv", "", "`id`"),
        ("x.jsonl", "{not json}\n", "cannot be read"),
        ("x.jsonl", "[1, 2]\n", "line 1"),
        ("x.parquet", "PAR1", "cannot be read"),
        ("x.csv", "id,label,condition,target\n", "no pair"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=word):
        packed(tmp_path / name, tmp_path / "out")


def test_a_source_that_is_missing_or_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    for name, word in (("absent", "does not exist"), ("empty", "no PNG"), ("file.txt", "a file")):
        with pytest.raises(DataError, match=word):
            packed(tmp_path / name, tmp_path / "out")


def test_a_source_of_bad_pictures_only(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    for path in source.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="can be used"):
        packed(source, tmp_path / "out")


# What is left out


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"hello", "not a PNG"),
    "truncated": (lambda: encoded(noise_picture(1, 16))[:-200], "cannot be decoded"),
    "rgba": (lambda: encoded(Image.new("RGBA", (16, 16))), "RGBA"),
    "palette": (lambda: encoded(Image.new("P", (16, 16))), "mode P"),
    "grey": (lambda: encoded(noise_picture(1, 16, 1)), "most of the data set"),
    "not square": (lambda: encoded(Image.new("RGB", (16, 15))), "16x15"),
    "other size": (lambda: encoded(noise_picture(1, 20)), "20 px"),
    "too large": (lambda: handmade_png(5000, 5000), "5000x5000"),
    "bomb": (lambda: handmade_png(16, 16, (b"zTXt", b"x\0\0" + packed_zeros())), "decoded"),
}


@pytest.mark.parametrize("side", ["condition", "target"])
def test_every_bad_picture_is_named_with_its_reason(tmp_path: Path, side: str) -> None:
    source = tree(tmp_path / "in", 30)
    for i, (make, _) in enumerate(BAD.values()):
        (source / "abc"[i % 3] / f"{i:03}.{side}.png").write_bytes(make())
    done = packed(source, tmp_path / "out")
    found = reasons(done)
    assert len(found) == len(BAD)
    for i, (_, word) in enumerate(BAD.values()):
        assert word in found[f"{'abc'[i % 3]}/{i:03}"]
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(found)
    assert set(rows_of(tmp_path / "out")).isdisjoint(found)
    assert sum(done.rows.values()) == 30 - len(BAD)


def test_odd_files_of_a_tree(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 6)
    (source / "a" / "000.target.png").unlink()
    shutil.copy(source / "b" / "001.target.png", source / "b" / "001.target.webp")
    shutil.copy(source / "b" / "004.target.png", source / "b" / "lonely.png")
    (source / "c" / "README.txt").write_text("x")
    (source / "c" / ".hidden.condition.png").write_bytes(b"x")
    os.mkfifo(source / "c" / "pipe.condition.png")
    (source / "c" / "gone.target.png").symlink_to(tmp_path / "nowhere")
    (source / "c" / "loop").symlink_to(source)
    (source / "c" / "self.condition.png").symlink_to(source / "c" / "self.condition.png")
    done = packed(source, tmp_path / "out")
    assert sum(done.rows.values()) == 4
    assert done.passed_over == 2
    found = {Path(one.file).name: one.reason for one in done.rejected}
    assert "no target" in found["000.condition.png"]
    assert "two files" in found["001.condition.png"]
    assert "neither" in found["lonely.png"]
    assert "linked" in found["loop"]
    for name in ("pipe.condition.png", "gone.target.png", "self.condition.png"):
        assert "no regular file" in found[name]
    assert len(found) == 7


def test_hostile_names(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 6)
    pair = [(source / "a" / f"000.{side}.png").read_bytes() for side in ("condition", "target")]
    names = ["caf\u00e9 \U0001f600", "-rf $(x);`y`", "a'b\"c", "new\nline", "bell\a", "x" * 200]
    for name in [*names, "cafe\u0301 \U0001f600"]:
        for side, data in zip(("condition", "target"), pair, strict=True):
            (source / "a" / f"{name}.{side}.png").write_bytes(data)
    raw = os.fsencode(source / "a") + b"/\xff\xfe."
    for side, data in zip((b"condition", b"target"), pair, strict=True):
        with open(raw + side + b".png", "wb") as file:
            file.write(data)
    done = packed(source, tmp_path / "out", test_share=0)
    found = reasons(done)
    assert sum(done.rows.values()) == 6 + 4
    assert "control" in found["a/new\nline"]
    assert "control" in found["a/bell\a"]
    assert "already" in found["a/caf\u00e9 \U0001f600"], "one name, spelt in two ways"
    assert [reason for name, reason in found.items() if "\udcff" in name] == [
        "its id is not UTF-8; rename it"
    ]
    assert "a/-rf $(x);`y`" in Pairs(str(tmp_path / "out" / "train"), 16).ids

"""`aalnet data pack`: all good pairs in, all bad ones named, and the same call goes on."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aalnet.errors import DataError
from cluster.data import packer, packing
from cluster.data.packer import PackOptions, PackReport, pack, split_of
from cluster.data.packing import ShardPlan, pack_shard
from cluster.data.pairs import Pairs
from cluster.data.shards import UNFINISHED
from cluster.storage.store import StoreError
from tests.support.hostile import handmade_png, packed_zeros
from tests.support.s3_server import S3Server, client_of, environment, s3_server
from tests.support.tiny_runs import encoded, noise_picture


def here(jobs: list[ShardPlan]) -> Iterator[dict[str, Any]]:
    return map(pack_shard, jobs)


def packed(source: Path | str, out: Path | str, **asked: Any) -> PackReport:
    return pack(PackOptions(str(source), str(out), **asked), here, lambda *_: None)


def tree(folder: Path, count: int = 40, size_px: int = 16) -> Path:
    """Pairs of three labels in `folder`."""
    for i in range(count):
        for side, seed in (("condition", 2 * i), ("target", 2 * i + 1)):
            path = folder / "abc"[i % 3] / f"{i:03}.{side}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(noise_picture(seed, size_px)))
    return folder


def reasons(done: PackReport) -> dict[str, str]:
    return {one.id: one.reason for one in done.rejected}


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """id: row, over both splits."""
    files = [
        path for split in ("train", "test") for path in sorted((out / split).glob("*.parquet"))
    ]
    return {row["id"]: row for path in files for row in pq.read_table(path).to_pylist()}


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


# Layouts


def test_a_tree_is_packed_and_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = packed(tree(tmp_path / "in"), out, test_share=0.25, rows_per_shard=7)
    assert done.layout == "tree"
    assert done.rejected == []
    assert sum(done.rows.values()) == 40
    assert done.labels == {"a": 14, "b": 13, "c": 13}
    for split, rows in done.rows.items():
        pairs = Pairs(str(out / split), 16)
        assert len(pairs) == rows
        assert all(split_of(name, 0.25) == split for name in pairs.ids)
        for row, name in enumerate(pairs.ids):
            i = int(name.partition("/")[2])
            assert pairs._labels[row] == name.partition("/")[0] == "abc"[i % 3]
            condition, target = pairs.pair(row)
            np.testing.assert_array_equal(condition, noise_picture(2 * i, 16).transpose(2, 0, 1))
            np.testing.assert_array_equal(target, noise_picture(2 * i + 1, 16).transpose(2, 0, 1))
    assert not list(out.rglob(UNFINISHED))


def test_files_are_taken_over_byte_for_byte_or_resized(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 4)
    whole = (source / "a" / "000.condition.png").read_bytes()
    packed(source, tmp_path / "same")
    assert rows_of(tmp_path / "same")["a/000"]["condition"]["bytes"] == whole
    packed(source, tmp_path / "equal", size_px=16)
    assert rows_of(tmp_path / "equal")["a/000"]["condition"]["bytes"] == whole
    packed(source, tmp_path / "small", size_px=8)
    shard = next((tmp_path / "small" / "train").glob("*.parquet"))
    small = Pairs(str(shard), 8).pair(0)[0]
    np.testing.assert_array_equal(small, Pairs(str(shard), 8).pair(0)[0])
    assert small.shape == (3, 8, 8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_side_by_side(tmp_path: Path, side: str) -> None:
    left, right = noise_picture(1, 16), noise_picture(2, 16)
    for label in ("cat", "dog"):
        path = tmp_path / "in" / "train" / label / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(np.concatenate([left, right], axis=1)))
    (tmp_path / "in" / "top.png").write_bytes(path.read_bytes())
    (tmp_path / "in" / "train" / "cat" / "odd.png").write_bytes(encoded(left))
    done = packed(tmp_path / "in", tmp_path / "out", condition_side=side, test_share=0)
    assert done.layout == "side-by-side"
    assert done.labels == {"cat": 1, "dog": 1}
    assert "16x16" in reasons(done)["train/cat/odd"]
    assert "no label" in reasons(done)["top"]
    condition, target = Pairs(str(tmp_path / "out" / "train"), 16).pair(0)
    first, second = (left, right) if side == "left" else (right, left)
    np.testing.assert_array_equal(condition, first.transpose(2, 0, 1))
    np.testing.assert_array_equal(target, second.transpose(2, 0, 1))
    named = packed(tmp_path / "in", tmp_path / "named", label="all")
    assert named.labels == {"all": 3}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list(tmp_path: Path, kind: str) -> None:
    source = tree(tmp_path / "in", 6)
    rows = [
        {
            "id": f"row {i}", "label": "xyz"[i % 3], "note": "passed over",
            "condition": f"in/{'abc'[i % 3]}/{i:03}.condition.png",
            "target": str(source / "abc"[i % 3] / f"{i:03}.target.png"),
        }
        for i in range(6)
    ]  # fmt: skip
    rows += [
        rows[0] | {"id": "row 1"},
        rows[0] | {"id": "no label", "label": None},
        rows[0] | {"id": "nan", "label": "NaN"},
        rows[0] | {"id": "gone", "condition": "in/a/absent.png"},
        rows[0] | {"id": "no path", "target": ""},
        rows[0] | {"id": ""},
        rows[0] | {"id": "folder", "condition": "in"},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    done = packed(path, tmp_path / "out")
    assert (done.layout, done.labels) == ("list", {"x": 2, "y": 2, "z": 2})
    found = reasons(done)
    assert set(found) == {"row 1", "no label", "nan", "gone", "no path", "", "folder"}
    assert "this id already" in found["row 1"]
    assert "no label" in found["no label"]
    assert "no label" in found["nan"]
    assert "No such file" in found["gone"]
    assert "no target" in found["no path"]
    assert "no id" in found[""]


def test_a_list_with_numbers_for_labels_as_pandas_writes_them(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    paths = {side: str(source / "a" / f"000.{side}.png") for side in ("condition", "target")}
    rows = [{"id": i, "label": label} | paths for i, label in enumerate([1.0, 2.0, float("nan")])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    done = packed(tmp_path / "list.parquet", tmp_path / "out")
    assert done.labels == {"1": 1, "2": 1}
    assert set(reasons(done)) == {"2"}


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


def test_a_source_of_bad_pictures_only(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    for path in source.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="can be used"):
        packed(source, tmp_path / "out")


# Again


def test_the_split_does_not_move_when_data_are_added(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(20_000)]
    share = sum(split_of(name, 0.1) == "test" for name in names) / len(names)
    assert share == pytest.approx(0.1, abs=0.01)
    assert {split_of(name, 0.0) for name in names} == {"train"}
    assert {split_of(name, 1.0) for name in names} == {"test"}
    moved = [n for n in names if split_of(n, 0.1) == "test" and split_of(n, 0.2) == "train"]
    assert moved == [], "a larger share only adds"


def test_a_second_call_does_nothing_and_a_change_is_packed_anew(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", 60), tmp_path / "out"
    (source / "a" / "000.target.png").write_bytes(b"bad")
    first = packed(source, out, rows_per_shard=10)
    before = contents(out)
    done: list[str] = []

    def noted(jobs: list[ShardPlan]) -> Iterator[dict[str, Any]]:
        done.extend(job.shard_key for job in jobs)
        return here(jobs)

    asked = PackOptions(str(source), str(out), rows_per_shard=10)
    again = pack(asked, noted, lambda *_: None)
    assert done == []
    assert again.shards_done_before == again.shards == first.shards
    assert again.rejected == first.rejected
    assert contents(out) == before

    changed = source / "b" / "001.target.png"
    changed.write_bytes(encoded(noise_picture(999, 16)))
    os.utime(changed, (1, 1))
    pack(asked, noted, lambda *_: None)
    assert len(done) == 1
    fewer = packed(source, out, rows_per_shard=100)
    assert fewer.shards == 2
    assert len(rows_of(out)) == 59
    assert len(list((out / "manifests").iterdir())) == 2
    assert rows_of(out)["b/001"]["target"]["bytes"] == changed.read_bytes()


def test_an_unfinished_pack_is_refused_by_readers_and_goes_on(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", 60), tmp_path / "out"

    def two_only(jobs: list[ShardPlan]) -> Iterator[dict[str, Any]]:
        for job in jobs[:2]:
            yield pack_shard(job)
        raise StoreError("the server is gone")

    asked = PackOptions(str(source), str(out), rows_per_shard=10)
    with pytest.raises(StoreError):
        pack(asked, two_only, lambda *_: None)
    with pytest.raises(DataError, match="not whole"):
        Pairs(str(out / "train"), 16)
    (out / "train" / "00001.parquet").write_bytes(b"half")
    done = pack(asked, here, lambda *_: None)
    assert done.shards_done_before == 1
    whole = packed(source, tmp_path / "other", rows_per_shard=10)
    assert whole.rows == done.rows
    here_, there = contents(out), contents(tmp_path / "other")
    assert {k: v for k, v in here_.items() if k.endswith("parquet")} == {
        k: v for k, v in there.items() if k.endswith("parquet")
    }


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match="choose another --out"):
        packed(source, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "mine.parquet").read_bytes() == b"mine"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "pack.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        packed(source, tmp_path / "odd")


def test_the_output_may_lie_inside_the_source(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 6)
    first = packed(source, source / "out")
    (source / "out" / "sheet.png").write_bytes(b"not a pair")
    assert packed(source, source / "out").rejected == first.rejected == []


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "GROUP_BYTES", 100)
    monkeypatch.setattr(packing, "GROUP_ROWS", 3)
    rows = [("i", "l", b"x" * n, b"y") for n in (1, 1, 1, 1, 50, 60, 500, 1)]
    sizes = [[len(row[2]) for row in group] for group in packing._groups(rows)]
    assert sizes == [[1, 1, 1], [1, 50], [60], [500], [1]]


def test_shards_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "SHARD_BYTES", 4000)
    done = packed(tree(tmp_path / "in", 20), tmp_path / "out", test_share=0)
    assert done.shards > 8
    assert len(Pairs(str(tmp_path / "out" / "train"), 16)) == 20


# In S3


def test_from_s3_to_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    with s3_server(tmp_path / "server") as server, environment(server.environment):
        from_s3_to_s3(server, tmp_path)


def from_s3_to_s3(server: S3Server, tmp_path: Path) -> None:
    source, client, bucket = tree(tmp_path / "in", 20), client_of(server), server.bucket
    (source / "a" / "000.target.png").write_bytes(b"bad")
    for path in source.rglob("*.png"):
        key = f"raw/{path.relative_to(source).as_posix()}"
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    at_home = packed(source, tmp_path / "out", rows_per_shard=6)
    out = f"s3://{bucket}/sets/one/"
    done = packed(f"s3://{bucket}/raw", out, rows_per_shard=6)
    assert done.rows == at_home.rows
    assert set(reasons(done)) == {"a/000"}
    there = Pairs(f"s3://{bucket}/sets/one/train", 16)
    assert there.ids == Pairs(str(tmp_path / "out" / "train"), 16).ids
    again = packed(f"s3://{bucket}/raw", out, rows_per_shard=6)
    assert again.shards_done_before == again.shards

    rows = [
        {
            "id": f"{i}", "label": "a", "target": f"c/{i:03}.target.png",
            "condition": f"s3://{bucket}/raw/c/{i:03}.condition.png",
        }
        for i in (2, 5, 8, 999)
    ]  # fmt: skip
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    client.put_object(Bucket=bucket, Key="raw/list.jsonl", Body=lines.encode())
    listed = packed(f"s3://{bucket}/raw/list.jsonl", tmp_path / "listed")
    assert listed.labels == {"a": 3}
    assert "does not exist" in reasons(listed)["999"]


# Killed

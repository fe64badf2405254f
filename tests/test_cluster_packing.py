"""`aalnet data pack`: every layout of a source becomes bounded shards, on disk and in S3."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.data import packer, packing
from cluster.data.packer import split_of
from cluster.data.pairs import Pairs
from cluster.data.shards import UNFINISHED
from tests.support.packs import packed, reasons, rows_of, tree
from tests.support.s3_server import S3Server, client_of, environment, s3_server
from tests.support.tiny_runs import encoded, noise_picture

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


# Bounds


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

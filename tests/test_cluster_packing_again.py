"""`aalnet data pack` again: the same call goes on, a change is packed anew, others' files stay."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import DataError
from cluster.data.packer import PackOptions, pack, split_of
from cluster.data.packing import ShardPlan, pack_shard
from cluster.data.pairs import Pairs
from cluster.storage.store import StoreError
from tests.support.packs import contents, here, packed, rows_of, tree
from tests.support.tiny_runs import encoded, noise_picture


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

"""`aalnet data pack` on Ray."""

from pathlib import Path

from cluster.data.shards import UNFINISHED
from tests.support.packs import packed, tree
from tests.support.ray_cluster import RayCluster
from tests.support.tiny_runs import aalnet


def test_pack_with_ray_gives_the_same_bytes(cluster: RayCluster, tmp_path: Path) -> None:
    source = tree(tmp_path / "pics", 120)
    (source / "a" / "000.target.png").write_bytes(b"bad")
    done = aalnet(
        "data", "pack", source, "--out", "set", "--workers", "2", "--rows-per-shard", "10",
        "--address", cluster.address, cwd=tmp_path, environment=cluster.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    packed(source, tmp_path / "other", rows_per_shard=10)
    files = [p for p in (tmp_path / "other").rglob("*") if p.is_file() and p.suffix == ".parquet"]
    assert len(files) >= 12
    for path in files:
        mine = tmp_path / "set" / path.relative_to(tmp_path / "other")
        assert mine.read_bytes() == path.read_bytes()
    assert not list((tmp_path / "set").rglob(UNFINISHED))


def test_a_storage_that_fails_under_ray_is_one_line(cluster: RayCluster, tmp_path: Path) -> None:
    tree(tmp_path / "pics", 12)
    (tmp_path / "set" / "manifests" / "train-00000.json").mkdir(parents=True)
    done = aalnet("data", "pack", "pics", "--out", "set", "--workers", "1",
                  "--address", cluster.address, cwd=tmp_path,
                  environment=cluster.environment)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "the same command goes on" in done.stderr

"""Which checkpoints stay, in which order the others go, and what is swept."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.networks import DataSpec
from aalnet.settings import RunSettings, parse_settings
from aalnet.state import TrainState
from cluster.runs.checkpoint import Checkpoint, checkpoints, save
from cluster.runs.promotions import promote
from cluster.runs.retention import UNFINISHED_S, prune, sweep, to_keep
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.tiny_runs import tiny_values

TENS = (10, 20, 30, 40, 50, 60)


class Watched(FolderStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.deleted: list[str] = []
        self.swept: list[tuple[str, float]] = []

    def delete(self, key: str) -> None:
        self.deleted.append(key)
        super().delete(key)

    def sweep(self, prefix: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        self.swept.append((prefix, older_than_s))
        return super().sweep(prefix, older_than_s, dry_run=dry_run)


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture
def run(store: Watched) -> Run:
    return Run(store, "demo")


@pytest.fixture(scope="module")
def state() -> TrainState:
    settings = parse_settings(tiny_values(Path()))
    return TrainState(settings, DataSpec(("a",), 3, 3), torch.device("cpu"))


def saved(run: Run, state: TrainState, images: int, **figures: float) -> Checkpoint:
    state.images_seen = images
    save(run, state, figures)
    return Checkpoint(run, images)


def rules(**values: Any) -> RunSettings:
    return RunSettings(**({"keep_last": 1, "keep_best": 0, "keep_every": 0} | values))


def images_of(run: Run) -> list[int]:
    return [found.images for found in checkpoints(run)]


def make_old(run: Run, key: str, seconds: float = 2 * UNFINISHED_S) -> None:
    at_s = time.time() - seconds
    os.utime(Path(run.store.uri) / key, (at_s, at_s))


def folder_keys(run: Run, images: int) -> list[str]:
    return run.store.keys(run.key("checkpoints", str(images)) + "/")


# The rules


@pytest.mark.parametrize(
    ("images", "best", "promoted", "values", "stay"),
    [
        ((), (), (), {}, ()),
        (TENS, (), (), {}, (60,)),
        (TENS, (), (), {"keep_last": 3}, (40, 50, 60)),
        (TENS, (), (), {"keep_last": 99}, TENS),
        (TENS, (20, 10, 60), (), {"keep_best": 0}, (60,)),
        (TENS, (20, 10, 60), (), {"keep_best": 1}, (20, 60)),
        (TENS, (20, 10, 60), (), {"keep_best": 2}, (10, 20, 60)),
        (TENS, (60, 50), (), {"keep_best": 1, "keep_last": 2}, (50, 60)),
        (TENS, (20,), (), {"keep_best": 99}, (20, 60)),
        (TENS, (), (30,), {}, (30, 60)),
        (TENS, (20,), (10, 60), {"keep_best": 1}, (10, 20, 60)),
        (TENS, (35,), (99,), {"keep_best": 1}, (60,)),  # gone already
        (TENS, (), (), {"keep_every": 1, "checkpoint_every_images": 10}, TENS),
        (TENS, (), (), {"keep_every": 2, "checkpoint_every_images": 10}, (20, 40, 60)),
        (TENS, (), (), {"keep_every": 3, "checkpoint_every_images": 10}, (30, 60)),
        (TENS, (), (), {"keep_every": 9, "checkpoint_every_images": 10}, (60,)),
        # whole batches: at or past a multiple
        ((12, 24, 36, 48), (), (), {"keep_every": 2, "checkpoint_every_images": 10}, (24, 48)),
        # 25 is one of SIGTERM, between two of the schedule
        ((20, 25, 30, 40, 50), (), (), {"keep_every": 2, "checkpoint_every_images": 10},
         (20, 40, 50)),
        ((5, 10, 20, 30), (), (), {"keep_every": 1, "checkpoint_every_images": 10}, (10, 20, 30)),
        (TENS, (30,), (10,), {"keep_every": 2, "keep_best": 1, "checkpoint_every_images": 10},
         (10, 20, 30, 40, 60)),
    ],
)  # fmt: skip
def test_which_stay(
    images: tuple[int, ...],
    best: tuple[int, ...],
    promoted: tuple[int, ...],
    values: dict[str, Any],
    stay: tuple[int, ...],
) -> None:
    assert to_keep(images, best, promoted, rules(**values)) == set(stay)


# Pruning


def test_pruning_keeps_the_last_and_the_best_and_takes_manifests_first(
    run: Run, store: Watched, state: TrainState
) -> None:
    scores = {4: 0.9, 8: 0.1, 12: 0.5, 100: 0.4, 200: 0.3, 1000: 0.2}
    for images, score in scores.items():
        saved(run, state, images, energy_score=score, energy_score_condition=0.0)

    assert prune(run, rules(keep_last=2, keep_best=1)) == [4, 12, 100]

    assert images_of(run) == [8, 200, 1000]
    folders = (Path(run.store.uri) / run.key("checkpoints")).iterdir()
    assert sorted(path.name for path in folders) == ["1000", "200", "8"]
    for images in (4, 12, 100):
        own = [key for key in store.deleted if f"/{images}/" in key]
        assert own[0].endswith("MANIFEST.json")
        assert len(own) == 3
    for found in checkpoints(run):
        for blob in found.manifest().blobs.values():
            assert found.tensors(blob)


@pytest.mark.parametrize(
    ("best_by", "best"),
    [("kid", 12), ("energy_score", 8), ("l1", 4), ("psnr", 8), ("diversity", 16)],
)
def test_best_by_a_figure_whichever_way_is_better(
    run: Run, state: TrainState, best_by: str, best: int
) -> None:
    names = ("kid_unpaired_x", "kid_lite0", "energy_score", "l1", "psnr", "diversity")
    values = {  # kid_lite0 is the biased figure of earlier versions: it would have 4 for the best
        4: (None, -1.0, 3.0, 0.1, 10.0, 0.1),
        8: (0.3, None, 1.0, 0.2, 30.0, 0.2),
        12: (0.1, None, 2.0, 0.3, 20.0, 0.3),
        16: (None, 0.0, 4.0, 0.4, 25.0, 0.4),
    }
    for images, row in values.items():
        saved(run, state, images, **dict(zip(names, row, strict=True)))
    saved(run, state, 20)  # one of SIGTERM: not measured
    prune(run, rules(keep_best=1, best_by=best_by))
    assert images_of(run) == [best, 20]


def test_pruning_without_figures_keeps_the_last(run: Run, state: TrainState) -> None:
    for images in (4, 8, 12, 16):
        saved(run, state, images)
    prune(run, rules(keep_best=3))
    assert images_of(run) == [16]
    assert prune(run, rules(keep_best=3)) == []


def test_pruning_goes_on_where_it_was_interrupted(run: Run, state: TrainState) -> None:
    for images in (4, 8, 12):
        saved(run, state, images)
    run.store.delete(Checkpoint(run, 4).key("MANIFEST.json"))
    prune(run, rules())
    assert images_of(run) == [12]
    assert len(folder_keys(run, 4)) == 2, "left to the sweep"


def test_what_a_model_points_to_or_can_be_rolled_back_to_is_kept(
    run: Run, store: Watched, state: TrainState
) -> None:
    for images in (4, 8, 12, 16, 20):
        saved(run, state, images)
    promote(store, Checkpoint(run, 4), "one")
    promote(store, Checkpoint(run, 12), "one")
    promote(store, Checkpoint(run, 16), "two")
    other = Run(store, "other")
    promote(store, saved(other, state, 8), "three")
    prune(run, rules())
    assert images_of(run) == [4, 12, 16, 20]
    assert images_of(other) == [8]


def test_damaged_ones_ahead_of_the_newest_count_for_nothing(run: Run, state: TrainState) -> None:
    for images in (4, 8, 12, 16):
        saved(run, state, images)
    run.store.write(Checkpoint(run, 16).key("MANIFEST.json"), b"{damaged")
    assert prune(run, rules(), newest=12) == [4, 8]
    assert images_of(run) == [12, 16]


def test_a_damaged_old_one_is_removed_and_never_the_best(run: Run, state: TrainState) -> None:
    for images, score in ((4, 0.1), (8, 0.2), (12, 0.3)):
        saved(run, state, images, energy_score=score)
    run.store.write(Checkpoint(run, 4).key("MANIFEST.json"), b"{damaged")
    assert prune(run, rules(keep_best=1)) == [4]
    assert images_of(run) == [8, 12]


# Sweeping


def test_left_over_blobs_go_and_whole_checkpoints_stay(
    run: Run, store: Watched, state: TrainState
) -> None:
    saved(run, state, 4)
    left = [
        run.key("checkpoints", "4", "ema-0123456789abcdef.safetensors"),
        run.key("checkpoints", "8", "training-0123456789abcdef.safetensors"),
    ]
    for key in left:
        store.write(key, b"left over")
    for key in store.keys(run.key("checkpoints/")):
        make_old(run, key)
    before = set(folder_keys(run, 4)) - set(left)
    store.deleted.clear()

    unfinished = store.root / run.key("checkpoints", "4", ".blob.1.partial")
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (0, 0))
    half = run.key("checkpoints", "4", ".blob.1.partial")

    told = sweep(run, dry_run=True)
    assert sorted(entry.key for entry in told) == sorted([*left, half])
    assert {entry.bytes for entry in told if entry.key != half} == {len(b"left over")}
    assert store.deleted == []
    assert unfinished.exists()

    assert sorted(entry.key for entry in sweep(run)) == sorted([*left, half])
    assert not unfinished.exists()
    assert sorted(store.deleted) == left
    assert set(folder_keys(run, 4)) == before
    for blob in Checkpoint(run, 4).manifest().blobs.values():
        assert Checkpoint(run, 4).tensors(blob)
    assert sweep(run) == []


def test_a_young_blob_stays(run: Run, store: Watched) -> None:
    key = run.key("checkpoints", "8", "ema-0123456789abcdef.safetensors")
    store.write(key, b"being written right now")
    assert sweep(run) == []
    make_old(run, key, UNFINISHED_S - 60)
    assert sweep(run) == []
    make_old(run, key, UNFINISHED_S + 60)
    assert [entry.key for entry in sweep(run)] == [key]
    assert sweep(run, 0) == []


def test_a_damaged_manifest_keeps_its_folder(run: Run, store: Watched, state: TrainState) -> None:
    for images, content in ((4, b"{damaged"), (8, b"[" * 100_000), (12, b" " * 5_000_000)):
        saved(run, state, images)
        store.write(Checkpoint(run, images).key("MANIFEST.json"), content)
    store.write(run.key("checkpoints", "latest", "MANIFEST.json"), b"{}")
    keys = store.keys(run.key("checkpoints/"))
    for key in keys:
        make_old(run, key)
    assert sweep(run) == []
    assert store.keys(run.key("checkpoints/")) == keys
    assert len(keys) == 10


def test_nothing_but_checkpoints_of_this_run_is_swept(run: Run, store: Watched) -> None:
    keys = [
        run.key("run.yaml"), run.key("metrics.jsonl"), run.key("samples", "4.png"),
        "runs/demo2/checkpoints/8/ema-0123456789abcdef.safetensors", "models/one.json",
    ]  # fmt: skip
    for key in keys:
        store.write(key, b"x")
        make_old(run, key)
    assert sweep(run, 0) == []
    assert sorted(store.keys()) == sorted(keys)


def test_unfinished_writes_and_uploads_are_swept(run: Run, store: Watched) -> None:
    folder = Path(store.uri) / run.key("checkpoints", "8")
    folder.mkdir(parents=True)
    old, young = folder / ".ema.1.partial", folder / ".ema.2.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    make_old(run, old.relative_to(store.root).as_posix())
    found = sweep(run)
    assert [entry.key for entry in found] == ["runs/demo/checkpoints/8/.ema.1.partial"]
    assert (old.exists(), young.exists()) == (False, True)
    assert store.swept == [("runs/demo/", UNFINISHED_S)], "an object store aborts its uploads here"

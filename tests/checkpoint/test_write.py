"""A checkpoint is whole or invisible, whoever writes it, and a damaged one is passed over."""

from pathlib import Path

import pytest

from aalnet.state import TrainState
from cluster.runs.checkpoint import (
    Checkpoint,
    CheckpointTaken,
    checkpoints,
    newest_whole,
    restore,
    save,
)
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.tiny_checkpoints import (
    assert_refused,
    blob_path,
    checkpoint_at,
    folder_of,
    fresh_state,
    trained_state,
)


class WatchedStore(FolderStore):
    """A folder that writes down what is done to it, and fails at the n-th write."""

    def __init__(self, root: Path, fail_at_write: int | None = None) -> None:
        super().__init__(root)
        self.done: list[tuple[str, str]] = []
        self.writes_left = fail_at_write

    def write(self, key: str, data: bytes) -> None:
        self._count("write", key)
        super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._count("create", key)
        super().create(key, data)

    def _count(self, action: str, key: str) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise StoreError("the disk is full")
        self.done.append((action, key))

    def delete(self, key: str) -> None:
        self.done.append(("delete", key))
        super().delete(key)


# Whole or invisible


def test_the_manifest_is_written_last(tmp_path: Path, state: TrainState) -> None:
    store = WatchedStore(tmp_path)
    found = checkpoint_at(Run(store, "demo"), state, 12)
    names = [key.rpartition("/")[2] for _, key in store.done]
    assert names[-1] == "MANIFEST.json"
    assert names.count("MANIFEST.json") == 1
    assert store.done[-1][0] == "create", "of two writers one wins"
    assert {blob.name for blob in found.manifest().blobs.values()} == set(names[:-1])
    assert sorted(name.partition("-")[0] for name in names[:-1]) == ["ema", "training"]


def test_a_write_that_fails_leaves_no_checkpoint_to_be_seen(
    tmp_path: Path, state: TrainState
) -> None:
    store = WatchedStore(tmp_path)
    checkpoint_at(Run(store, "demo"), state, 12)
    for n in range(len(store.done)):
        run = Run(WatchedStore(tmp_path / str(n), fail_at_write=n), "demo")
        with pytest.raises(StoreError, match="disk is full"):
            checkpoint_at(run, state, 12)
        assert checkpoints(run) == []
        assert newest_whole(run, lambda found: None, print) is None
        assert_refused(
            lambda run=run: restore(state, Checkpoint(run, 12)), "MANIFEST.json", "missing"
        )
    run = Run(WatchedStore(tmp_path / "whole", fail_at_write=len(store.done)), "demo")
    checkpoint_at(run, state, 12)
    assert [found.images for found in checkpoints(run)] == [12]


def test_a_second_writer_of_the_same_numbers_is_welcome(run: Run, state: TrainState) -> None:
    first = checkpoint_at(run, state, 12, energy_score=0.5)
    before = first.manifest()
    checkpoint_at(run, state, 12, energy_score=0.75)  # a repeated interval measures again
    assert first.manifest() == before, "the first one to create the manifest has won"


def test_a_second_writer_of_other_numbers_is_told(run: Run, state: TrainState, data: Path) -> None:
    found = checkpoint_at(run, state, 12)
    before = {p.name: p.read_bytes() for p in folder_of(found).iterdir()}
    with pytest.raises(CheckpointTaken, match=r"another process trains run `demo`.*12 images"):
        save(run, trained_state(data, optimizer__lr=0.1), {})
    assert {name: (folder_of(found) / name).read_bytes() for name in before} == before
    restore(fresh_state(data), found)


@pytest.mark.parametrize("harm", ["manifest", "blob", "gone"])
def test_a_damaged_one_is_written_again(run: Run, state: TrainState, data: Path, harm: str) -> None:
    found = checkpoint_at(run, state, 12)
    path = (
        blob_path(found, "training") if harm != "manifest" else folder_of(found) / "MANIFEST.json"
    )
    path.write_bytes(b"{damaged") if harm != "gone" else path.unlink()
    assert_refused(lambda: restore(fresh_state(data), found))
    save(run, trained_state(data, optimizer__lr=0.1), {})
    again = fresh_state(data)
    restore(again, found)
    assert found.manifest().settings["optimizer"]["lr"] == 0.1


# Falling back


def test_the_newest_whole_one_is_used_and_the_damage_is_named(
    run: Run, state: TrainState, data: Path
) -> None:
    for images in (4, 8, 12, 16):
        checkpoint_at(run, state, images)
    blob_path(Checkpoint(run, 12), "ema").write_bytes(b"x")
    (folder_of(Checkpoint(run, 16)) / "MANIFEST.json").write_bytes(b"{")
    told: list[str] = []
    after = fresh_state(data)
    found = newest_whole(run, lambda candidate: restore(after, candidate), told.append)
    assert found is not None
    assert found[0].images == after.images_seen == 8
    assert [line.partition(":")[0] for line in told] == [
        "checkpoint at 16 images is passed over", "checkpoint at 12 images is passed over",
    ]  # fmt: skip
    assert "checkpoints/16/MANIFEST.json` is damaged" in told[0]
    assert "checkpoints/12/ema-" in told[1]


def test_none_whole_is_an_error_and_none_at_all_is_not(
    run: Run, state: TrainState, data: Path
) -> None:
    use = lambda candidate: restore(fresh_state(data), candidate)  # noqa: E731
    assert newest_whole(run, use, print) is None
    for images in (4, 8):
        (folder_of(checkpoint_at(run, state, images)) / "MANIFEST.json").write_bytes(b"{")
    told: list[str] = []
    assert_refused(
        lambda: newest_whole(run, use, told.append), "no checkpoint of run `demo`", "damaged"
    )
    assert len(told) == 2


def test_a_storage_that_fails_is_no_damage(tmp_path: Path, state: TrainState) -> None:
    run = Run(FolderStore(tmp_path), "demo")
    for images in (4, 8):
        checkpoint_at(run, state, images)

    def use(candidate: Checkpoint) -> None:
        raise StoreError("nobody answers")

    with pytest.raises(StoreError, match="nobody answers"):
        newest_whole(run, use, print)

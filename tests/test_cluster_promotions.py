"""Promoted models: promote, roll back, follow; and files that somebody else wrote."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.errors import CheckpointError, ConfigError
from aalnet.networks import DataSpec
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from cluster.runs.checkpoint import Checkpoint, save
from cluster.runs.promotions import (
    LIMIT_BYTES,
    REMEMBERED,
    checkpoint_of,
    list_models,
    promote,
    promoted_images,
    read_model,
    roll_back,
)
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.tiny_runs import tiny_values

GOOD: dict[str, Any] = {
    "model": "one", "run": "demo", "images": 4, "digest": "d" * 64, "promoted_at_s": 1.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> TrainState:
    settings = parse_settings(tiny_values(Path()))
    return TrainState(settings, DataSpec(("a",), 3, 3), torch.device("cpu"))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def run(store: FolderStore, state: TrainState) -> Run:
    run = Run(store, "demo")
    for images in (4, 8, 12):
        saved(run, state, images)
    return run


def saved(run: Run, state: TrainState, images: int) -> Checkpoint:
    state.images_seen = images
    save(run, state, {})
    return Checkpoint(run, images)


def file_of(store: FolderStore, name: str = "one") -> Path:
    return store.root / "models" / f"{name}.json"


# Promoting


def test_a_name_points_to_a_checkpoint(store: FolderStore, run: Run) -> None:
    found = Checkpoint(run, 8)
    now = promote(store, found, "one")
    assert (now.model, now.run, now.images) == ("one", "demo", 8)
    assert now.digest == found.manifest().digest
    assert abs(time.time() - now.promoted_at_s) < 60
    assert read_model(store, "one") == now
    assert checkpoint_of(store, now) == found
    assert list_models(store) == ["one"]
    assert promoted_images(run) == [8]


def test_roll_back_goes_back_again_and_again(store: FolderStore, run: Run) -> None:
    all_ = [promote(store, Checkpoint(run, images), "one") for images in (4, 8, 12)]
    assert sorted(promoted_images(run)) == [4, 8, 12]
    assert roll_back(store, "one") == all_[1]
    assert read_model(store, "one") == all_[1]
    assert sorted(promoted_images(run)) == [4, 8]
    assert roll_back(store, "one") == all_[0]
    with pytest.raises(CheckpointError, match=r"promoted once, to demo@4; there is nothing to"):
        roll_back(store, "one")
    assert read_model(store, "one") == all_[0]


def test_the_last_few_are_remembered(store: FolderStore, run: Run) -> None:
    for number in range(REMEMBERED + 5):
        promote(store, Checkpoint(run, (4, 8, 12)[number % 3]), "one")
    assert len(json.loads(file_of(store).read_bytes())["promotions"]) == REMEMBERED
    for _ in range(REMEMBERED - 1):
        roll_back(store, "one")
    with pytest.raises(CheckpointError, match="nothing to roll back to"):
        roll_back(store, "one")


def test_models_are_apart(store: FolderStore, run: Run, state: TrainState) -> None:
    other = Run(store, "other")
    promote(store, Checkpoint(run, 4), "one")
    promote(store, saved(other, state, 8), "two")
    assert list_models(store) == ["one", "two"]
    assert (promoted_images(run), promoted_images(other)) == ([4], [8])


@pytest.mark.parametrize("part", ["ema", "training", "manifest"])
def test_every_byte_is_checked_first(store: FolderStore, run: Run, part: str) -> None:
    promote(store, Checkpoint(run, 4), "one")
    found = Checkpoint(run, 8)
    name = "MANIFEST.json" if part == "manifest" else found.manifest().blobs[part].name
    path = store.root / found.key(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        promote(store, found, "one")
    assert read_model(store, "one").images == 4
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        promote(store, found, "one")


def test_another_checkpoint_in_its_place_is_found_out(
    store: FolderStore, run: Run, state: TrainState
) -> None:
    now = promote(store, Checkpoint(run, 4), "one")
    store.delete(Checkpoint(run, 4).key("MANIFEST.json"))
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint_of(store, now)
    state.images_seen = 4
    save(run, state, {"l1": 0.5})
    with pytest.raises(CheckpointError, match="is not the one that was promoted to `one`"):
        checkpoint_of(store, now)


@pytest.mark.parametrize(
    "name",
    ["", "A", "a_b", "-a", "a-", "a.b", "a/b", "../a", "a" * 64, "a b", "a\n", "é", "\u0661"],
    ids=ascii,
)
def test_names_that_cannot_be(store: FolderStore, run: Run, name: str) -> None:
    for call in (lambda: promote(store, Checkpoint(run, 4), name), lambda: read_model(store, name),
                 lambda: roll_back(store, name)):  # fmt: skip
        with pytest.raises(ConfigError, match="1 to 63 small letters"):
            call()
    assert store.keys("models/") == []


@pytest.mark.parametrize("name", ["a", "0", "a-b-1", "x" * 63])
def test_names_that_can(store: FolderStore, run: Run, name: str) -> None:
    assert promote(store, Checkpoint(run, 4), name) == read_model(store, name)


def test_a_model_that_is_not_there(store: FolderStore, run: Run) -> None:
    promote(store, Checkpoint(run, 4), "smileys")
    with pytest.raises(CheckpointError, match=r"`smiley` does not exist.*mean `smileys`"):
        read_model(store, "smiley")
    with pytest.raises(CheckpointError, match=r"`xyz` does not exist.*aalnet promote"):
        roll_back(store, "xyz")


# Files of somebody else


HOSTILE: list[bytes] = [
    b"", b"{", b"null", b"5", b"[]", b'"x"', b"{}", b'{"promotions": null}', b'{"promotions": []}',
    b'{"promotions": {}}', b'{"promotions": "abc"}', b'{"promotions": [5]}',
    b'{"promotions": [null]}', b'{"promotions": [{}]}', b"\xff\xfe", b"[" * 100_000,
    b'{"promotions": ' + b"[" * 900 + b"]" * 900 + b"}",
    *(json.dumps({"promotions": [GOOD | change]}).encode() for change in (
        {"images": "4"}, {"images": 4.5}, {"images": None}, {"run": 5}, {"digest": None},
        {"promoted_at_s": "now"}, {"model": []}, {"more": 1},
    )),
    b" " * (LIMIT_BYTES + 1),
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: ascii(content[:60]))
def test_a_file_that_is_none(store: FolderStore, run: Run, content: bytes) -> None:
    store.write("models/one.json", content)
    started_at_s = time.perf_counter()
    for call in (lambda: read_model(store, "one"), lambda: roll_back(store, "one"),
                 lambda: promoted_images(run),
                 lambda: promote(store, Checkpoint(run, 4), "one")):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("`models/one.json` is damaged")
        assert "remove it and promote again" in message
        assert "\n" not in message
    assert time.perf_counter() - started_at_s < 10
    assert store.read("models/one.json") == content
    store.delete("models/one.json")
    promote(store, Checkpoint(run, 4), "one")
    assert read_model(store, "one").images == 4


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", "x" * 99])
def test_a_file_that_names_no_run(store: FolderStore, name: str) -> None:
    content = {"promotions": [GOOD | {"run": name}]}
    store.write("models/one.json", json.dumps(content).encode())
    with pytest.raises(ConfigError, match="run name"):
        checkpoint_of(store, read_model(store, "one"))


def test_other_files_beside_models_are_none(store: FolderStore, run: Run) -> None:
    promote(store, Checkpoint(run, 4), "one")
    for name in ("README.md", "Upper.json", "a/b.json", ".hidden.json", "notes.json.bak"):
        store.write(f"models/{name}", b"x")
    assert list_models(store) == ["one"]
    assert promoted_images(run) == [4]


def test_a_storage_that_fails_is_no_damage(
    store: FolderStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, Checkpoint(run, 4), "one")

    def broken(*_: object, **__: object) -> bytes:
        raise StoreError("no route to host")

    monkeypatch.setattr(store, "read", broken)
    with pytest.raises(StoreError, match="no route"):
        read_model(store, "one")

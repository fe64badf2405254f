"""Checkpoints in a store: a flip or cut is found before use, and each costs few requests of S3."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.runs import checkpoint
from cluster.runs.checkpoint import Checkpoint, checkpoints, load_generator, restore
from cluster.runs.manifest import LIMIT_BYTES, parse_manifest
from cluster.runs.run import MANIFEST, Run
from cluster.storage import s3
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from tests.support.fault_proxy import FaultProxy
from tests.support.repeats import repeats
from tests.support.s3_server import S3Server
from tests.support.short_runs import numbers, settings_of, trained


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainState]:
    """A run with one checkpoint in a folder, and the state in it."""
    run = Run(FolderStore(tmp_path_factory.mktemp("saved")), "a")
    assert trained(run, settings_of(data, run__images=32)) == "finished"
    state = new_state(settings_of(data), run)
    restore(state, Checkpoint(run, 32))
    return run, state


def new_state(settings: Settings, run: Run) -> TrainState:
    return TrainState(settings, Checkpoint(run, 32).manifest().spec, torch.device("cpu"))


# Damage


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    if chance.random() < 0.25:
        return data[: chance.randrange(len(data))]
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def same_facts(data: bytes, whole: bytes) -> bool:
    """Does a changed manifest still say the same? (`1e-06` and `1E-06` are one number.)"""
    try:
        return parse_manifest(data, "x") == parse_manifest(whole, "x")
    except CheckpointError:
        return False


def test_every_flip_and_cut_is_found_before_use(
    saved: tuple[Run, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, state = saved
    found = Checkpoint(run, 32)
    before = copy.deepcopy(state.tensors())
    known = {run.store.read(found.key(blob.name)) for blob in found.manifest().blobs.values()}
    load = safetensors.torch.load

    def guarded(data: bytes) -> Any:
        assert data in known, "damaged tensors were read"
        return load(data)

    monkeypatch.setattr(safetensors.torch, "load", guarded)
    keys = run.store.keys(found.key() + "/")
    assert len(keys) == 3
    chance, missed, alike = random.Random(11), [], 0
    for _ in range(repeats(150, 1000)):
        key = chance.choice(keys)
        whole = run.store.read(key)
        changed = damaged(whole, chance)
        if key.endswith(MANIFEST) and same_facts(changed, whole):
            alike += 1
            continue
        path = Path(run.store.uri) / key
        path.write_bytes(changed)
        uses: list[Callable[[], object]] = [lambda: restore(state, found)]
        if "training" not in key:
            uses.append(lambda: load_generator(found, torch.device("cpu")))
        for use in uses:
            try:
                use()
                missed.append((key, len(changed)))
            except CheckpointError:
                pass
        path.write_bytes(whole)
    assert missed == []
    assert alike < repeats(150, 1000) / 50
    after = state.tensors()
    assert all(
        torch.equal(before[f][name], after[f][name]) for f in before for name in before[f]
    ), "a damaged checkpoint changed the state"
    restore(state, found)


def test_a_damaged_newest_checkpoint_is_passed_over_in_s3(server: S3Server, data: Path) -> None:
    run = Run(open_store(f"s3://{server.bucket}/damaged"), "a")
    settings = settings_of(data, run__images=64)
    assert trained(run, settings) == "finished"
    whole = numbers(run)
    newest = checkpoints(run)[-1]
    key = newest.key(newest.manifest().blobs["training"].name)
    run.store.write(key, damaged(run.store.read(key), random.Random(3)))
    assert trained(run, settings) == "finished"
    assert any("passed over" in r.get("text", "") for r in run.records())
    assert numbers(run) == whole


# Requests


def parts_of(size: int) -> int:
    return 1 if size < s3.WHOLE_BYTES else -(-size // s3.PART_BYTES)


def test_requests_of_a_small_checkpoint(
    proxy: FaultProxy, server: S3Server, saved: tuple[Run, TrainState]
) -> None:
    run = Run(open_store(f"s3://{server.bucket}/counted"), "a")
    run.store.keys()
    proxy.forget()
    checkpoint.save(run, saved[1], {})
    assert proxy.requests == {"put": 2, "create": 1}


def test_requests_of_a_checkpoint_in_parts(proxy: FaultProxy, server: S3Server) -> None:
    run = Run(open_store(f"s3://{server.bucket}/counted"), "b")
    settings = Settings.model_validate({"network": {"widths": [64, 128, 256, 512]}})
    state = TrainState(settings, DataSpec(("a",), 3, 3), torch.device("cpu"))
    run.store.keys()
    proxy.forget()
    manifest = checkpoint.save(run, state, {})
    sizes = [blob.size_bytes for blob in manifest.blobs.values()]
    assert max(sizes) > s3.WHOLE_BYTES > min(sizes)
    assert len(Checkpoint(run, 0).manifest().to_json()) < LIMIT_BYTES
    written = sum(proxy.requests[k] for k in ("put", "create", "begin", "part", "complete"))
    assert written <= sum(map(parts_of, sizes)) + 3

"""Checkpoints and whole runs over S3: damage is found, outages and faults change no number."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import cluster.training.loop
from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.launch import launcher
from cluster.launch.launcher import Placement
from cluster.runs import checkpoint
from cluster.runs.checkpoint import Checkpoint, checkpoints, load_generator, restore
from cluster.runs.manifest import LIMIT_BYTES, parse_manifest
from cluster.runs.run import MANIFEST, Run
from cluster.runs.saver import StorePatienceSpent
from cluster.storage import s3, s3_client
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.training.stop import Stop
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.repeats import repeats
from tests.support.s3_server import S3Server
from tests.support.tiny_runs import tiny_settings, without_clocks, write_data

HERE = Placement(0, "cpu", "this machine")
STEPS, EVERY = 64, 8  # of a run, and between checkpoints
OUTAGE_S = 2.0  # at least


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def settings_of(data: Path, **overrides: Any) -> Settings:
    short = {
        "run.images": 4 * STEPS,
        "run.checkpoint_every_images": 4 * EVERY,
        "run.keep_last": 100,
        "objective.penalty_interval": 8,
    }
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    return tiny_settings(data, {**short, **values})


def trained(run: Run, settings: Settings) -> str:
    run.claim(settings)
    return launcher.train_here(run, settings, HERE, Stop())


def numbers(run: Run) -> Any:
    """Everything that a run computed."""
    blobs = {found.images: dict(found.manifest().blobs) for found in checkpoints(run)}
    return blobs, without_clocks(run.records(), ["train", "evaluation"])


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = Run(FolderStore(tmp_path_factory.mktemp("undisturbed")), "a")
    assert trained(run, settings_of(data)) == "finished"
    return numbers(run)


# Damage


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


# Faults


def test_a_tenth_of_requests_failing(
    proxy: FaultProxy, server: S3Server, data: Path, undisturbed: Any
) -> None:
    run = Run(open_store(f"s3://{server.bucket}/failing"), "a")
    proxy.rule = Rule(0.1, seed=4)
    assert trained(run, settings_of(data)) == "finished"
    proxy.rule = Rule()
    assert sum(proxy.faults.values()) >= 5
    blobs, records = undisturbed
    theirs, logged = numbers(run)
    assert logged == records
    assert theirs == {at: blobs[at] for at in theirs}  # a newer state may have replaced one
    assert max(theirs) == 4 * STEPS
    assert waiting_share(run) <= 0.05


def waiting_share(run: Run) -> float:
    """Of the loop's time, what was no step, no reading and no evaluation."""
    records = run.records()
    steps = [r for r in records if r["kind"] == "train"]
    spans = [r["images"] - b["images"] for b, r in pairwise(steps)]
    busy_s = sum(
        images / 4 * (r["step_s"] + r["data_s"]) for images, r in zip(spans, steps[1:], strict=True)
    )
    last = steps[-1]["images"]
    busy_s += sum(r["seconds"] for r in records if r["kind"] == "evaluation" and r["images"] < last)
    whole_s = steps[-1]["time_s"] - steps[0]["time_s"]
    return max(whole_s - busy_s, 0.0) / whole_s


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[float]]:
    """Call something once a step has been made; gives the list of all steps' times."""

    def install(number: int, act: Callable[[], None]) -> list[float]:
        times: list[float] = []
        step = cluster.training.loop.STEPS["aalnet"]

        def counted(*arguments: Any) -> Any:
            terms = step(*arguments)
            times.append(time.monotonic())
            if len(times) == number:
                act()
            return terms

        monkeypatch.setattr(cluster.training.loop, "STEPS", {"aalnet": counted})
        return times

    return install


def test_training_goes_on_while_the_store_is_down(
    proxy: FaultProxy,
    server: S3Server,
    data: Path,
    undisturbed: Any,
    at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    down: list[float] = []

    def up() -> None:
        """Back after some steps, so that the machine's pace does not matter; at last anyway."""
        end_s = down[0] + 60.0
        while sum(at > down[0] for at in times) <= 9 and time.monotonic() < end_s:
            time.sleep(0.05)
        proxy.rule = Rule()
        down.append(time.monotonic())

    def go_down() -> None:
        proxy.rule = Rule(down=True)
        down.append(time.monotonic())
        threading.Timer(OUTAGE_S, up).start()

    times = at_step(2 * EVERY - 2, go_down)
    run = Run(open_store(f"s3://{server.bucket}/down"), "a")
    assert trained(run, settings_of(data)) == "finished"
    began_s, ended_s = down
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(began_s < at < ended_s for at in times) > 8, "no steps while the store was down"
    assert max(gaps) < OUTAGE_S
    told = [r["text"] for r in run.records() if r["kind"] == "warning"]
    assert any("storage fails, training goes on" in text for text in told)
    assert any("storage answers again" in text for text in told)
    blobs, records = undisturbed
    theirs, logged = numbers(run)
    assert logged == records
    assert theirs == {at: blobs[at] for at in theirs}
    assert {4 * EVERY, 4 * STEPS} <= theirs.keys()


def test_patience_ends_with_a_clear_error(
    proxy: FaultProxy,
    server: S3Server,
    data: Path,
    at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    at_step(2 * EVERY - 2, lambda: setattr(proxy, "rule", Rule(down=True)))
    run = Run(open_store(f"s3://{server.bucket}/patience"), "a")
    settings = settings_of(
        data, failures={"storage_patience_s": 1.0, "grace_s": 1.0}, run__images=8000
    )
    started_s = time.monotonic()
    with pytest.raises(StorePatienceSpent, match=r"longer than failures\.storage_patience_s"):
        trained(run, settings)
    assert time.monotonic() - started_s < 40
    proxy.rule = Rule()
    assert [found.images for found in checkpoints(run)] == [4 * EVERY]


# Counted


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

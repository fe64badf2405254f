"""Checkpoints give a state back bit for bit, and no code with it."""

import ast
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.baselines import STEPS
from aalnet.batch import ALONE
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from cluster.runs.checkpoint import checkpoints, load_generator, restore, save
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.tiny_checkpoints import (
    CPU,
    checkpoint_at,
    flat_tensors,
    folder_of,
    fresh_state,
    trained_state,
)
from tests.support.tiny_runs import ROOT

# Bit for bit


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model": "gan"},
        {"model": "vae"},
        {"optimizer.name": "sgd"},
        {"run.precision": "float64"},
        {"run.channels_last": True},
        {"network.blocks": "inception", "network.start_from_condition": False},
    ],
    ids=str,
)
def test_a_restored_state_is_the_same_bit_for_bit(
    data: Path, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    before = trained_state(data, **{k.replace(".", "__"): v for k, v in overrides.items()})
    after = fresh_state(data, **{k.replace(".", "__"): v for k, v in overrides.items()})
    run = Run(FolderStore(tmp_path), "demo")
    written = save(run, before, {})

    restore(after, checkpoints(run)[-1])

    ours, theirs = flat_tensors(before), flat_tensors(after)
    assert ours.keys() == theirs.keys()
    assert any("optimizer" in name for name in ours)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name
    assert (after.images_seen, after.steps) == (before.images_seen, before.steps) == (12, 3)
    for side, optimizer in before.optimizers.items():
        assert after.optimizers[side].state_dict()["state"].keys() == (
            optimizer.state_dict()["state"].keys()
        )
    files = {p.name: p for p in folder_of(checkpoints(run)[-1]).iterdir()}
    assert files.keys() == {"MANIFEST.json", *(blob.name for blob in written.blobs.values())}
    for blob in written.blobs.values():
        content = files[blob.name].read_bytes()
        assert hashlib.sha256(content).hexdigest() == blob.sha256
        assert blob.name.endswith(f"-{blob.sha256[:16]}.safetensors")
        assert blob.size_bytes == len(content)
    assert written.size_bytes == sum(blob.size_bytes for blob in written.blobs.values())
    assert checkpoints(run)[-1].manifest() == written


def test_a_restored_state_goes_on_as_the_first_one_does(data: Path, tmp_path: Path) -> None:
    before, after = trained_state(data), fresh_state(data)
    run = Run(FolderStore(tmp_path), "demo")
    save(run, before, {})
    restore(after, checkpoints(run)[-1])
    pairs = Pairs(before.settings.data.train, 32)
    for state in (before, after):
        for batch in read_batches(pairs, state.settings, state.images_seen, 0, 1):
            STEPS["aalnet"](state, state.place(batch), ALONE)
    assert before.steps == 8
    assert all(
        torch.equal(value, flat_tensors(after)[name])
        for name, value in flat_tensors(before).items()
    )


def test_the_same_state_gives_the_same_bytes(run: Run, state: TrainState) -> None:
    first = checkpoint_at(run, state, 12, energy_score=0.5)
    bytes_before = {p.name: p.read_bytes() for p in folder_of(first).iterdir()}
    second = checkpoint_at(run, state, 12, energy_score=0.5)
    assert {p.name: p.read_bytes() for p in folder_of(second).iterdir()} == bytes_before


def test_the_manifest_says_what_was_trained_on(run: Run, state: TrainState) -> None:
    facts = checkpoint_at(run, state, 12, energy_score=0.25).manifest()
    assert facts.figures == {"energy_score": 0.25}
    assert facts.spec == state.spec
    assert (facts.images_seen, facts.steps) == (12, state.steps)
    assert parse_settings(dict(facts.settings)) == state.settings
    assert facts.settings_digest == state.settings.digest()
    assert facts.blobs.keys() == {"ema", "training"}


def test_load_generator_gives_the_moving_average(run: Run, state: TrainState) -> None:
    generator, settings = load_generator(checkpoint_at(run, state, 12), CPU)
    own = dict(state.ema.state_dict())
    assert settings == state.settings
    assert not generator.training
    assert all(torch.equal(value, own[name]) for name, value in generator.state_dict().items())
    trained_one = state.generator.state_dict()
    assert any(not torch.equal(v, trained_one[n]) for n, v in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_load_generator_reads_float64_too(data: Path, tmp_path: Path) -> None:
    state = trained_state(data, run__precision="float64")
    run = Run(FolderStore(tmp_path), "demo")
    generator, _ = load_generator(checkpoint_at(run, state, 12), CPU)
    condition, noise = torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 4)
    assert generator(condition, torch.tensor([0]), noise).shape == (1, 2, 3, 32, 32)


# No code in data


def test_nothing_here_can_unpickle() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in [*(ROOT / "cluster").rglob("*.py"), *(ROOT / "aalnet").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert forbidden.isdisjoint(name.partition(".")[0] for name in names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", path

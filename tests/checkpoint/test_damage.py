"""A checkpoint that is damaged, or that fits another run, is refused by name."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from cluster.runs import manifest
from cluster.runs.checkpoint import Checkpoint, by_figure, load_generator, restore
from tests.support.tiny_checkpoints import (
    CPU,
    assert_refused,
    blob_path,
    flat_tensors,
    folder_of,
    forge,
    forge_facts,
    fresh_state,
)
from tests.support.tiny_runs import tiny_values

# Damage


@pytest.mark.parametrize("part", ["ema", "training"])
def test_a_blob_that_is_missing_truncated_or_changed(
    whole: Checkpoint, data: Path, part: str
) -> None:
    path = blob_path(whole, part)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], good[:-1] + b"\xff"):
        path.write_bytes(bad)
        assert_refused(lambda: restore(fresh_state(data), whole), path.name, "damaged")
    path.unlink()
    assert_refused(lambda: restore(fresh_state(data), whole), path.name, "missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["damaged"]),
        ("{not json", ["damaged"]),
        ("[]", ["damaged", "not an object"]),
        ("null", ["damaged"]),
        ('"text"', ["damaged"]),
        ("{}", ["format version None"]),
        (
            '{"format_version": 1, "files": {}}',
            ["format version 1", f"reads {manifest.FORMAT_VERSION}"],
        ),
        (f'{{"format_version": "{manifest.FORMAT_VERSION}"}}', ["format version '"]),
        (f'{{"format_version": {manifest.FORMAT_VERSION}}}', ["no proper"]),
        (f'{{"format_version": {manifest.FORMAT_VERSION}, "blobs": []}}', ["no proper"]),
        ("[" * 100_000, ["damaged"]),
        (" " * (manifest.LIMIT_BYTES + 1), ["larger than"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_manifest_that_is_none(
    whole: Checkpoint, data: Path, text: str, words: list[str]
) -> None:
    (folder_of(whole) / "MANIFEST.json").write_text(text)
    assert_refused(lambda: restore(fresh_state(data), whole), *words)
    assert_refused(lambda: load_generator(whole, CPU), *words)


def test_a_manifest_that_is_no_text(whole: Checkpoint, data: Path) -> None:
    (folder_of(whole) / "MANIFEST.json").write_bytes(b"\xff\xfe{\x80}")
    assert_refused(lambda: restore(fresh_state(data), whole), "damaged")


def test_a_manifest_of_other_images(whole: Checkpoint, data: Path) -> None:
    forge_facts(whole, images_seen=13)
    assert_refused(lambda: restore(fresh_state(data), whole), "is of 13 images")


@pytest.mark.parametrize("part", ["ema", "training"])
def test_a_checkpoint_without_a_part(whole: Checkpoint, data: Path, part: str) -> None:
    facts = json.loads((folder_of(whole) / "MANIFEST.json").read_bytes())
    del facts["blobs"][part]
    forge_facts(whole, blobs=facts["blobs"])
    assert_refused(lambda: restore(fresh_state(data), whole), f"has no {part}")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": 5},
        {"labels": [1]},
        {"condition_channels": "many"},
        {"condition_channels": 10**18},
        {"target_channels": 0},
        {"target_channels": -3},
        {"images_seen": None},
        {"images_seen": 12.0},
        {"steps": []},
        {"steps": True},
        {"settings": None},
        {"settings": {"nonsense": 1}},
        {"settings": {"network": [[[[[[]]]]]]}},
        {"figures": []},
        {"blobs": {"ema": 5}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_of_another_make(
    whole: Checkpoint, data: Path, change: dict[str, object]
) -> None:
    forge_facts(whole, **change)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_generator(whole, CPU)
    assert caught.value.exit_code == 2
    if "settings" not in change or change["settings"] is None:
        assert_refused(lambda: restore(fresh_state(data), whole))
        assert by_figure([whole], "kid") == []


# Of another run


def test_tensors_of_another_shape_or_type(whole: Checkpoint, data: Path, state: TrainState) -> None:
    good = {name: value.clone() for name, value in state.ema.state_dict().items()}
    name = next(iter(good))
    for bad in (good[name].double(), good[name].flatten(), good[name][None],
                good[name].view(torch.int32)):  # fmt: skip
        forge(whole, "ema", safetensors.torch.save({**good, name: bad.contiguous()}))
        assert_refused(lambda: restore(fresh_state(data), whole), "ema", name)
        assert_refused(lambda: load_generator(whole, CPU), "ema", name)
    forge(whole, "ema", safetensors.torch.save(good))
    restore(fresh_state(data), whole)


def test_optimizers_of_another_shape_type_or_make(
    whole: Checkpoint, data: Path, state: TrainState
) -> None:
    part = {
        name: value.clone() for name, value in flat_tensors(state).items() if name[:4] != "ema/"
    }
    own = "generator_optimizer/0.exp_avg"
    for key, value in (
        ("generator_optimizer/999.exp_avg", torch.zeros(1)),
        ("generator_optimizer/x.step", torch.zeros(1)),
        ("generator_optimizer/0.evil", torch.zeros_like(part[own])),
        (own, torch.zeros(7)),
        (own, torch.zeros(())),
        (own, part[own].double()),
        (own, part[own].long()),
        ("generator_optimizer/0.step", torch.zeros((), dtype=torch.int64)),
    ):
        forge(whole, "training", safetensors.torch.save({**part, key: value}))
        assert_refused(
            lambda: restore(fresh_state(data), whole),
            "generator_optimizer",
            key.partition("/")[2][0],
        )
    del part[own]
    forge(whole, "training", safetensors.torch.save(part))
    assert_refused(lambda: restore(fresh_state(data), whole), "generator_optimizer", "exp_avg_sq")


def test_labels_that_differ_are_said(whole: Checkpoint, data: Path) -> None:
    forge_facts(whole, labels=["x", "y", "z"])
    assert_refused(lambda: restore(fresh_state(data), whole), "'x', 'y', 'z'", "'a', 'b', 'c'")


def test_settings_that_differ_are_refused(whole: Checkpoint, data: Path) -> None:
    assert_refused(
        lambda: restore(fresh_state(data, network__embedding_size=16), whole), "does not fit"
    )
    assert_refused(
        lambda: restore(fresh_state(data, model="vae"), whole),
        "checkpoint holds",
        "wanted",
        "proposal",
    )
    settings = parse_settings(tiny_values(data, {"optimizer.lr": 0.1}))
    assert_refused(lambda: whole.run.claim(settings), "optimizer.lr", "0.001", "0.1", "--run")
    same = parse_settings(tiny_values(data, {"run.log_every_images": 4, "run.workers": 2}))
    whole.run.claim(same)

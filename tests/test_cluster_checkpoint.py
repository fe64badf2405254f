"""Checkpoints: bit for bit, whole or invisible, and refused by name when they are damaged."""

import ast
import dataclasses
import hashlib
import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from aalnet.baselines import STEPS
from aalnet.batch import ALONE
from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.data.reader import read_batches
from cluster.runs import checkpoint, manifest
from cluster.runs.checkpoint import (
    Checkpoint,
    CheckpointTaken,
    by_figure,
    checkpoints,
    find_checkpoint,
    load_generator,
    newest_whole,
    restore,
    save,
)
from cluster.runs.manifest import Blob
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.tiny_runs import ROOT, tiny_values, write_data

CPU = torch.device("cpu")


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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def fresh(data: Path, **overrides: Any) -> TrainState:
    settings = parse_settings(
        tiny_values(data, {k.replace("__", "."): v for k, v in overrides.items()})
    )
    return TrainState(settings, Pairs(settings.data.train, 32).spec, CPU)


def trained(data: Path, steps: int = 3, **overrides: Any) -> TrainState:
    """A state after some steps, so that nothing in it is a default."""
    state = fresh(data, **overrides)
    pairs = Pairs(state.settings.data.train, 32)
    batches = read_batches(pairs, state.settings, 0, 0, 1)
    for _ in range(steps):
        STEPS[state.settings.model](state, state.place(next(batches)), ALONE)
    batches.close()  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def state(data: Path) -> TrainState:
    return trained(data)


@pytest.fixture
def run(tmp_path: Path, state: TrainState) -> Run:
    run = Run(FolderStore(tmp_path), "demo")
    run.write_settings(state.settings)
    return run


def saved(run: Run, state: TrainState, images: int, **figures: float) -> Checkpoint:
    """The state as if it had seen other images."""
    before = state.images_seen
    state.images_seen = images
    save(run, state, figures)
    state.images_seen = before
    return Checkpoint(run, images)


def flat(state: TrainState) -> dict[str, Tensor]:
    return {f"{a}/{b}": t for a, ts in state.tensors().items() for b, t in ts.items()}


def folder(found: Checkpoint) -> Path:
    return Path(found.run.store.uri) / found.key()


def blob_path(found: Checkpoint, part: str) -> Path:
    return folder(found) / found.manifest().blobs[part].name


def forge(found: Checkpoint, part: str, data: bytes) -> None:
    """Put other bytes in place of a blob, with a manifest that vouches for them."""
    facts = found.manifest()
    blob = Blob.of(part, data)
    (folder(found) / blob.name).write_bytes(data)
    forged = dataclasses.replace(facts, blobs={**facts.blobs, part: blob})
    (folder(found) / "MANIFEST.json").write_bytes(forged.to_json())


def forge_facts(found: Checkpoint, **changes: Any) -> None:
    """Change what a manifest says, and its own digest along with it. None removes a field."""
    path = folder(found) / "MANIFEST.json"
    facts = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "digest"} | changes
    facts = {key: value for key, value in facts.items() if value is not None}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**facts, "digest": digest}, indent=1))


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert caught.value.exit_code == 2


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
    before = trained(data, **{k.replace(".", "__"): v for k, v in overrides.items()})
    after = fresh(data, **{k.replace(".", "__"): v for k, v in overrides.items()})
    run = Run(FolderStore(tmp_path), "demo")
    written = save(run, before, {})

    restore(after, checkpoints(run)[-1])

    ours, theirs = flat(before), flat(after)
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
    files = {p.name: p for p in folder(checkpoints(run)[-1]).iterdir()}
    assert files.keys() == {"MANIFEST.json", *(blob.name for blob in written.blobs.values())}
    for blob in written.blobs.values():
        content = files[blob.name].read_bytes()
        assert hashlib.sha256(content).hexdigest() == blob.sha256
        assert blob.name.endswith(f"-{blob.sha256[:16]}.safetensors")
        assert blob.size_bytes == len(content)
    assert written.size_bytes == sum(blob.size_bytes for blob in written.blobs.values())
    assert checkpoints(run)[-1].manifest() == written


def test_a_restored_state_goes_on_as_the_first_one_does(data: Path, tmp_path: Path) -> None:
    before, after = trained(data), fresh(data)
    run = Run(FolderStore(tmp_path), "demo")
    save(run, before, {})
    restore(after, checkpoints(run)[-1])
    pairs = Pairs(before.settings.data.train, 32)
    for state in (before, after):
        for batch in read_batches(pairs, state.settings, state.images_seen, 0, 1):
            STEPS["aalnet"](state, state.place(batch), ALONE)
    assert before.steps == 8
    assert all(torch.equal(value, flat(after)[name]) for name, value in flat(before).items())


def test_the_same_state_gives_the_same_bytes(run: Run, state: TrainState) -> None:
    first = saved(run, state, 12, kid_x=0.5)
    bytes_before = {p.name: p.read_bytes() for p in folder(first).iterdir()}
    second = saved(run, state, 12, kid_x=0.5)
    assert {p.name: p.read_bytes() for p in folder(second).iterdir()} == bytes_before


def test_the_manifest_says_what_was_trained_on(run: Run, state: TrainState) -> None:
    facts = saved(run, state, 12, kid_x=0.25).manifest()
    assert facts.figures == {"kid_x": 0.25}
    assert facts.spec == state.spec
    assert (facts.images_seen, facts.steps) == (12, state.steps)
    assert parse_settings(dict(facts.settings)) == state.settings
    assert facts.settings_digest == state.settings.digest()
    assert facts.blobs.keys() == {"ema", "training"}


def test_load_generator_gives_the_moving_average(run: Run, state: TrainState) -> None:
    generator, settings = load_generator(saved(run, state, 12), CPU)
    own = dict(state.ema.state_dict())
    assert settings == state.settings
    assert not generator.training
    assert all(torch.equal(value, own[name]) for name, value in generator.state_dict().items())
    trained_one = state.generator.state_dict()
    assert any(not torch.equal(v, trained_one[n]) for n, v in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_load_generator_reads_float64_too(data: Path, tmp_path: Path) -> None:
    state = trained(data, run__precision="float64")
    run = Run(FolderStore(tmp_path), "demo")
    generator, _ = load_generator(saved(run, state, 12), CPU)
    condition, noise = torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 4)
    assert generator(condition, torch.tensor([0]), noise).shape == (1, 2, 3, 32, 32)


# Whole or invisible


def test_the_manifest_is_written_last(tmp_path: Path, state: TrainState) -> None:
    store = WatchedStore(tmp_path)
    found = saved(Run(store, "demo"), state, 12)
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
    saved(Run(store, "demo"), state, 12)
    for n in range(len(store.done)):
        run = Run(WatchedStore(tmp_path / str(n), fail_at_write=n), "demo")
        with pytest.raises(StoreError, match="disk is full"):
            saved(run, state, 12)
        assert checkpoints(run) == []
        assert newest_whole(run, lambda found: None, print) is None
        refused(lambda run=run: restore(state, Checkpoint(run, 12)), "MANIFEST.json", "missing")
    run = Run(WatchedStore(tmp_path / "whole", fail_at_write=len(store.done)), "demo")
    saved(run, state, 12)
    assert [found.images for found in checkpoints(run)] == [12]


def test_a_second_writer_of_the_same_numbers_is_welcome(run: Run, state: TrainState) -> None:
    first = saved(run, state, 12, kid_x=0.5)
    before = first.manifest()
    saved(run, state, 12, kid_x=0.75)  # a repeated interval measures again
    assert first.manifest() == before, "the first one to create the manifest has won"


def test_a_second_writer_of_other_numbers_is_told(run: Run, state: TrainState, data: Path) -> None:
    found = saved(run, state, 12)
    before = {p.name: p.read_bytes() for p in folder(found).iterdir()}
    with pytest.raises(CheckpointTaken, match=r"another process trains run `demo`.*12 images"):
        save(run, trained(data, optimizer__lr=0.1), {})
    assert {name: (folder(found) / name).read_bytes() for name in before} == before
    restore(fresh(data), found)


@pytest.mark.parametrize("harm", ["manifest", "blob", "gone"])
def test_a_damaged_one_is_written_again(run: Run, state: TrainState, data: Path, harm: str) -> None:
    found = saved(run, state, 12)
    path = blob_path(found, "training") if harm != "manifest" else folder(found) / "MANIFEST.json"
    path.write_bytes(b"{damaged") if harm != "gone" else path.unlink()
    refused(lambda: restore(fresh(data), found))
    save(run, trained(data, optimizer__lr=0.1), {})
    again = fresh(data)
    restore(again, found)
    assert found.manifest().settings["optimizer"]["lr"] == 0.1


# Falling back


def test_the_newest_whole_one_is_used_and_the_damage_is_named(
    run: Run, state: TrainState, data: Path
) -> None:
    for images in (4, 8, 12, 16):
        saved(run, state, images)
    blob_path(Checkpoint(run, 12), "ema").write_bytes(b"x")
    (folder(Checkpoint(run, 16)) / "MANIFEST.json").write_bytes(b"{")
    told: list[str] = []
    after = fresh(data)
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
    use = lambda candidate: restore(fresh(data), candidate)  # noqa: E731
    assert newest_whole(run, use, print) is None
    for images in (4, 8):
        (folder(saved(run, state, images)) / "MANIFEST.json").write_bytes(b"{")
    told: list[str] = []
    refused(lambda: newest_whole(run, use, told.append), "no checkpoint of run `demo`", "damaged")
    assert len(told) == 2


def test_a_storage_that_fails_is_no_damage(tmp_path: Path, state: TrainState) -> None:
    run = Run(FolderStore(tmp_path), "demo")
    for images in (4, 8):
        saved(run, state, images)

    def use(candidate: Checkpoint) -> None:
        raise StoreError("nobody answers")

    with pytest.raises(StoreError, match="nobody answers"):
        newest_whole(run, use, print)


# Damage


@pytest.fixture
def whole(run: Run, state: TrainState) -> Checkpoint:
    return saved(run, state, 12)


@pytest.mark.parametrize("part", ["ema", "training"])
def test_a_blob_that_is_missing_truncated_or_changed(
    whole: Checkpoint, data: Path, part: str
) -> None:
    path = blob_path(whole, part)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], good[:-1] + b"\xff"):
        path.write_bytes(bad)
        refused(lambda: restore(fresh(data), whole), path.name, "damaged")
    path.unlink()
    refused(lambda: restore(fresh(data), whole), path.name, "missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["damaged"]),
        ("{not json", ["damaged"]),
        ("[]", ["damaged", "not an object"]),
        ("null", ["damaged"]),
        ('"text"', ["damaged"]),
        ("{}", ["format version None"]),
        ('{"format_version": 1, "files": {}}', ["format version 1", "reads 2"]),
        ('{"format_version": "2"}', ["format version '2'"]),
        ('{"format_version": 2}', ["no proper"]),
        ('{"format_version": 2, "blobs": []}', ["no proper"]),
        ("[" * 100_000, ["damaged"]),
        (" " * (manifest.LIMIT_BYTES + 1), ["larger than"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_manifest_that_is_none(
    whole: Checkpoint, data: Path, text: str, words: list[str]
) -> None:
    (folder(whole) / "MANIFEST.json").write_text(text)
    refused(lambda: restore(fresh(data), whole), *words)
    refused(lambda: load_generator(whole, CPU), *words)


def test_a_manifest_that_is_no_text(whole: Checkpoint, data: Path) -> None:
    (folder(whole) / "MANIFEST.json").write_bytes(b"\xff\xfe{\x80}")
    refused(lambda: restore(fresh(data), whole), "damaged")


def test_a_manifest_of_other_images(whole: Checkpoint, data: Path) -> None:
    forge_facts(whole, images_seen=13)
    refused(lambda: restore(fresh(data), whole), "is of 13 images")


@pytest.mark.parametrize("part", ["ema", "training"])
def test_a_checkpoint_without_a_part(whole: Checkpoint, data: Path, part: str) -> None:
    facts = json.loads((folder(whole) / "MANIFEST.json").read_bytes())
    del facts["blobs"][part]
    forge_facts(whole, blobs=facts["blobs"])
    refused(lambda: restore(fresh(data), whole), f"has no {part}")


def safetensors_bytes(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HOSTILE = {
    "empty": b"",
    "short": b"\1\2\3",
    "header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "no json": safetensors_bytes(b"\x80\x04pickle"),
    "a list": safetensors_bytes([]),
    "past the end": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"
    ),
    "backwards": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"
    ),
    "shape overflows": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"
    ),
    "unknown type": safetensors_bytes(
        {"x": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "negative": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "other tensors": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "overlapping": safetensors_bytes(
        {
            "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        },
        b"12345678",
    ),
    "a hole": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"
    ),
    "truncated": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234567"
    ),
    "a terabyte": safetensors_bytes(
        {"x": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}, b"1234"
    ),
    "a terabyte of nothing": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}
    ),
    "too small for its shape": safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"
    ),
    "a type torch has not": safetensors_bytes(
        {"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1"
    ),
    "the same name twice": safetensors_bytes(
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        b"12",
    ),
    "deep": safetensors_bytes(b'{"x":' + b"[" * 100_000),
    "a header of a megabyte": safetensors_bytes(b"{" + b" " * 2**20 + b"}"),
    "pickle": b"\x80\x04\x95\x1a" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93",
}


@pytest.mark.parametrize("part", ["ema", "training"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tensor_file_under_a_right_digest(
    whole: Checkpoint, data: Path, case: str, part: str
) -> None:
    forge(whole, part, HOSTILE[case])
    state = fresh(data)
    tracemalloc.start()
    started_at_s = time.thread_time()
    refused(lambda: restore(state, whole))
    if part == "ema":
        refused(lambda: load_generator(whole, CPU), "ema")
    elif case not in {"other tensors", "a terabyte of nothing", "a header of a megabyte"}:
        # As `aalnet promote` reads it: any tensors will do, so what is no tensors is refused.
        refused(lambda: whole.tensors(whole.manifest().blobs[part]), f"checkpoints/12/{part}-")
    seconds = time.thread_time() - started_at_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 16 * 2**20


@pytest.mark.parametrize("part", ["ema", "training"])
@pytest.mark.parametrize("claimed", [2**40, 2**62, 10**300])
def test_a_claim_of_a_terabyte_allocates_nothing(
    whole: Checkpoint, data: Path, part: str, claimed: int
) -> None:
    facts = json.loads((folder(whole) / "MANIFEST.json").read_bytes())
    facts["blobs"][part]["size_bytes"] = claimed
    forge_facts(whole, blobs=facts["blobs"])
    state = fresh(data)
    tracemalloc.start()
    started_at_s = time.thread_time()
    refused(lambda: restore(state, whole), part, "claims")
    refused(lambda: whole.tensors(whole.manifest().blobs[part]), part, "damaged")
    seconds = time.thread_time() - started_at_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 16 * 2**20


@pytest.mark.parametrize("blocks", ["resnet", "densenet", "inception"])
def test_settings_of_a_giant_network_are_refused_before_it_is_made(
    whole: Checkpoint, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(whole.manifest().settings)
    settings["network"] = settings["network"] | {
        "widths": [16_384] * 4, "encoder_blocks": 8, "decoder_blocks": 8, "blocks": blocks,
    }  # fmt: skip
    forge_facts(whole, settings=settings)
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("it was made"))
    started_at_s = time.thread_time()
    refused(lambda: load_generator(whole, CPU), "ema-", "where its settings need")
    assert time.thread_time() - started_at_s < 20


@pytest.mark.parametrize(
    "network",
    [{"widths": [2**40, 4]}, {"widths": [4] * 1000}, {"encoder_blocks": 10**9},
     {"embedding_size": 10**12}, {"noise_size": 2**63}],
    ids=str,
)  # fmt: skip
def test_settings_that_no_network_has(whole: Checkpoint, network: dict[str, Any]) -> None:
    settings = dict(whole.manifest().settings)
    settings["network"] = settings["network"] | network
    forge_facts(whole, settings=settings)
    with pytest.raises(ConfigError, match=next(iter(network))):
        load_generator(whole, CPU)


def test_a_blob_larger_than_its_settings_need_is_not_read(
    whole: Checkpoint, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = blob_path(whole, "ema").read_bytes()
    forge(whole, "ema", good + bytes(checkpoint.HEADER_BYTES))
    read: list[str] = []
    reading = FolderStore.read

    def watched(store: FolderStore, key: str, limit_bytes: int | None = None) -> bytes:
        read.append(key.rpartition("/")[2])
        return reading(store, key, limit_bytes)

    monkeypatch.setattr(FolderStore, "read", watched)
    refused(lambda: restore(fresh(data), whole), "claims")
    refused(lambda: load_generator(whole, CPU), "claims")
    assert read == ["MANIFEST.json"] * 2


def test_tensors_of_another_shape_or_type(whole: Checkpoint, data: Path, state: TrainState) -> None:
    good = {name: value.clone() for name, value in state.ema.state_dict().items()}
    name = next(iter(good))
    for bad in (good[name].double(), good[name].flatten(), good[name][None],
                good[name].view(torch.int32)):  # fmt: skip
        forge(whole, "ema", safetensors.torch.save({**good, name: bad.contiguous()}))
        refused(lambda: restore(fresh(data), whole), "ema", name)
        refused(lambda: load_generator(whole, CPU), "ema", name)
    forge(whole, "ema", safetensors.torch.save(good))
    restore(fresh(data), whole)


def test_optimizers_of_another_shape_type_or_make(
    whole: Checkpoint, data: Path, state: TrainState
) -> None:
    part = {name: value.clone() for name, value in flat(state).items() if name[:4] != "ema/"}
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
        refused(
            lambda: restore(fresh(data), whole), "generator_optimizer", key.partition("/")[2][0]
        )
    del part[own]
    forge(whole, "training", safetensors.torch.save(part))
    refused(lambda: restore(fresh(data), whole), "generator_optimizer", "exp_avg_sq")


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
        refused(lambda: restore(fresh(data), whole))
        assert by_figure([whole], "kid") == []


@pytest.mark.parametrize("value", [10**400, "0.1", None, True, [], float("nan"), float("inf")])
def test_a_figure_that_is_no_figure_is_nobodys_best(
    run: Run, state: TrainState, value: object
) -> None:
    good = saved(run, state, 8, kid_lite0=5.0)
    odd = saved(run, state, 12, kid_lite0=value)  # type: ignore[arg-type]
    best = by_figure([good, odd], "kid")
    assert best[-1] == good
    assert len(best) == (2 if value is True else 1)


def test_labels_that_differ_are_said(whole: Checkpoint, data: Path) -> None:
    forge_facts(whole, labels=["x", "y", "z"])
    refused(lambda: restore(fresh(data), whole), "'x', 'y', 'z'", "'a', 'b', 'c'")


def test_settings_that_differ_are_refused(whole: Checkpoint, data: Path) -> None:
    refused(lambda: restore(fresh(data, network__embedding_size=16), whole), "does not fit")
    refused(
        lambda: restore(fresh(data, model="vae"), whole), "checkpoint holds", "wanted", "posterior"
    )
    settings = parse_settings(tiny_values(data, {"optimizer.lr": 0.1}))
    refused(lambda: whole.run.claim(settings), "optimizer.lr", "0.0005", "0.1", "--run")
    same = parse_settings(tiny_values(data, {"run.log_every_images": 4, "run.workers": 2}))
    whole.run.claim(same)


# Finding one


@pytest.fixture
def three(run: Run, state: TrainState) -> Run:
    for images, score in ((8, 0.3), (16, 0.1), (1600, 0.2)):
        saved(run, state, images, kid_lite0=score)
    return run


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("demo", 1600),
        ("demo@16", 16),
        ("demo@1600", 1600),
        ("demo@1,600", 1600),
        ("demo@1_600", 1600),
        ("demo@best", 16),
        ("{root}/runs/demo", 1600),
        ("{root}/runs/demo/", 1600),
        ("{root}/runs/demo/checkpoints/8", 8),
        ("{root}/runs/demo/checkpoints/8/", 8),
    ],
)
def test_the_ways_to_name_a_checkpoint(three: Run, tmp_path: Path, name: str, images: int) -> None:
    found = find_checkpoint(three.store, name.format(root=tmp_path))
    assert (found.run.name, found.images) == ("demo", images)
    assert found.manifest().images_seen == images


def test_a_path_is_read_from_here_and_from_any_storage(
    three: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = FolderStore(tmp_path / "elsewhere")
    assert find_checkpoint(elsewhere, "runs/demo/checkpoints/16").images == 16
    assert find_checkpoint(elsewhere, f"{three.uri}/checkpoints/8").images == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmeo", ["`dmeo` does not exist", "did you mean `demo`?"]),
        ("nothing-like-it", ["does not exist", "aalnet runs list"]),
        ("demo@17", ["no checkpoint at 17", "8, 16, 1600"]),
        ("demo@newest", ["no checkpoint at newest", "8, 16, 1600"]),
        ("{root}/runs/demo/checkpoints/9", ["no checkpoint at 9"]),
        ("{root}/runs/other/checkpoints/9", ["`other` does not exist"]),
    ],
)
def test_a_checkpoint_that_is_not_there(
    three: Run, tmp_path: Path, name: str, words: list[str]
) -> None:
    refused(lambda: find_checkpoint(three.store, name.format(root=tmp_path)), *words)


@pytest.mark.parametrize("name", ["../demo", "a/b", "", "-x", "x" * 64, "a b", "a\nb", "@8"])
def test_a_name_that_can_be_no_run(run: Run, name: str) -> None:
    with pytest.raises((ConfigError, CheckpointError)):
        find_checkpoint(run.store, name)


def test_a_run_without_a_checkpoint(run: Run) -> None:
    refused(lambda: find_checkpoint(run.store, "demo"), "no checkpoint yet")


def test_other_folders_are_no_checkpoints(three: Run) -> None:
    top = folder(Checkpoint(three, 8)).parent
    for name in ("latest", "-5", "1e3", ".hidden"):
        (top / name).mkdir()
        (top / name / "MANIFEST.json").write_text("{}")
    (top / "5").mkdir()
    (top / "5" / "ema-0123456789abcdef.safetensors").write_bytes(b"")
    assert [found.images for found in checkpoints(three)] == [8, 16, 1600]


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


def test_a_checkpoint_is_text_and_tensors_only(whole: Checkpoint) -> None:
    assert manifest.FORMAT_VERSION == 2
    kinds = {path.suffix for path in folder(whole).iterdir()}
    assert kinds == {".json", ".safetensors"}

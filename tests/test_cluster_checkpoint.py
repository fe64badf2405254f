"""Checkpoints: bit for bit, whole or invisible, and refused by name when they are damaged."""

import ast
import hashlib
import json
import struct
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
from cluster import checkpoint
from cluster.checkpoint import (
    Checkpoint,
    best,
    checkpoints,
    find_checkpoint,
    load_generator,
    prune,
    restore,
    save,
    spec_of,
)
from cluster.data import Pairs
from cluster.reader import read_batches
from cluster.runs import Run
from cluster.store import FolderStore, StoreError
from tests.tiny_runs import ROOT, tiny_values, write_data

CPU = torch.device("cpu")


class WatchedStore(FolderStore):
    """A folder that writes down what is done to it, and fails at the n-th write."""

    def __init__(self, root: Path, fail_at_write: int | None = None) -> None:
        super().__init__(root)
        self.done: list[tuple[str, str]] = []
        self.writes_left = fail_at_write

    def write(self, key: str, data: bytes) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise StoreError("the disk is full")
        self.done.append(("write", key))
        super().write(key, data)

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


def forge(found: Checkpoint, name: str, data: bytes) -> None:
    """Put other bytes in place of a blob, with a manifest that vouches for them."""
    (folder(found) / name).write_bytes(data)
    manifest = found.manifest()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder(found) / "MANIFEST.json").write_text(json.dumps(manifest))


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
    blobs = [p for p in folder(checkpoints(run)[-1]).iterdir() if p.name != "MANIFEST.json"]
    assert written == sum(p.stat().st_size for p in blobs)


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


def test_state_json_says_what_was_trained_on(run: Run, state: TrainState) -> None:
    facts = saved(run, state, 12, kid_x=0.25).state()
    assert facts["figures"] == {"kid_x": 0.25}
    assert spec_of(facts) == state.spec
    assert parse_settings(facts["settings"]) == state.settings


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
    assert set(found.manifest()["files"]) == set(names[:-1])
    assert "state.json" in names
    assert "ema.safetensors" in names


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
        refused(lambda run=run: restore(state, Checkpoint(run, 12)), "MANIFEST.json", "missing")
    run = Run(WatchedStore(tmp_path / "whole", fail_at_write=len(store.done)), "demo")
    saved(run, state, 12)
    assert [found.images for found in checkpoints(run)] == [12]


def test_pruning_keeps_the_last_and_the_best_and_takes_manifests_first(
    tmp_path: Path, state: TrainState
) -> None:
    store = WatchedStore(tmp_path)
    run = Run(store, "demo")
    scores = {4: 0.9, 8: 0.1, 12: 0.5, 100: 0.4, 200: 0.3, 1000: 0.2}
    for images, score in scores.items():
        saved(run, state, images, kid_lite0=score, kid_lite0_condition=0.0)
    store.done.clear()

    prune(run, keep_last=2)

    assert [found.images for found in checkpoints(run)] == [8, 200, 1000]
    assert sorted(p.name for p in folder(Checkpoint(run, 8)).parent.iterdir()) == [
        "1000", "200", "8",
    ]  # fmt: skip
    for images in (4, 12, 100):
        own = [key for done, key in store.done if f"/{images}/" in key]
        assert own[0].endswith("MANIFEST.json")
        assert len(own) == 1 + len(Checkpoint(run, 8).manifest()["files"])
    for found in checkpoints(run):
        found.state()
        assert found.tensors("ema")


def test_pruning_without_figures_keeps_the_last(run: Run, state: TrainState) -> None:
    for images in (4, 8, 12, 16):
        saved(run, state, images)
    prune(run, keep_last=1)
    assert [found.images for found in checkpoints(run)] == [16]
    assert best(checkpoints(run)) is None


def test_pruning_goes_on_where_it_was_interrupted(run: Run, state: TrainState) -> None:
    for images in (4, 8, 12):
        saved(run, state, images)
    (folder(Checkpoint(run, 4)) / "MANIFEST.json").unlink()
    prune(run, keep_last=1)
    assert [found.images for found in checkpoints(run)] == [12]


# Damage


@pytest.fixture
def whole(run: Run, state: TrainState) -> Checkpoint:
    return saved(run, state, 12)


@pytest.mark.parametrize(
    "name", ["generator.safetensors", "ema.safetensors", "discriminator_optimizer.safetensors",
             "state.json"],
)  # fmt: skip
def test_a_blob_that_is_missing_truncated_or_changed(
    whole: Checkpoint, data: Path, name: str
) -> None:
    path = folder(whole) / name
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], good[:-1] + b"\xff"):
        path.write_bytes(bad)
        refused(lambda: restore(fresh(data), whole), name, "digest")
    path.unlink()
    refused(lambda: restore(fresh(data), whole), name, "missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["damaged"]),
        ("{not json", ["damaged"]),
        ("[]", ["damaged", "not an object"]),
        ("null", ["damaged"]),
        ('"text"', ["damaged"]),
        ("{}", ["format version None"]),
        ('{"format_version": 2, "files": {}}', ["format version 2", "reads 1"]),
        ('{"format_version": "1", "files": {}}', ["format version 1"]),
        ('{"format_version": 1}', ["lists no files"]),
        ('{"format_version": 1, "files": []}', ["lists no files"]),
        ('{"format_version": 1, "files": {}}', ["has no state.json"]),
        ('{"format_version": 1, "files": {"state.json": 5}}', ["has no state.json"]),
        ('{"format_version": 1, "files": {"state.json": {}}}', ["digest"]),
        ("[" * 100_000, ["damaged"]),
    ],
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
    "pickle": b"\x80\x04\x95\x1a" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93",
}


@pytest.mark.parametrize("name", ["ema", "generator_optimizer"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tensor_file_under_a_right_digest(
    whole: Checkpoint, data: Path, case: str, name: str
) -> None:
    forge(whole, f"{name}.safetensors", HOSTILE[case])
    refused(lambda: restore(fresh(data), whole), name)


def test_tensors_of_another_shape_or_type(whole: Checkpoint, data: Path, state: TrainState) -> None:
    good = {name: value.clone() for name, value in state.ema.state_dict().items()}
    name = next(iter(good))
    whole_ema = safetensors.torch.save(good)
    for bad in (good[name].double(), good[name].flatten(), good[name][None]):
        forge(whole, "ema.safetensors", safetensors.torch.save({**good, name: bad.contiguous()}))
        refused(lambda: restore(fresh(data), whole), "ema", name)
    forge(whole, "ema.safetensors", whole_ema)
    slots = {k: v.clone() for k, v in state.tensors()["generator_optimizer"].items()}
    for key, value in (("999.exp_avg", torch.zeros(1)), ("0.exp_avg", torch.zeros(7)),
                       ("x.step", torch.zeros(1))):  # fmt: skip
        forge(
            whole, "generator_optimizer.safetensors", safetensors.torch.save({**slots, key: value})
        )
        refused(lambda: restore(fresh(data), whole), "generator_optimizer", key)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": 5},
        {"condition_channels": "many"},
        {"images_seen": None},
        {"steps": []},
        {"settings": None},
        {"settings": {"nonsense": 1}},
        {"figures": []},
    ],
    ids=str,
)
def test_a_state_json_of_another_make(
    whole: Checkpoint, data: Path, change: dict[str, object]
) -> None:
    def use() -> None:
        restore(fresh(data), whole)
        load_generator(whole, CPU)
        best([whole])

    good = whole.state()
    for facts in (good | change, {k: v for k, v in good.items() if k not in change}):
        forge(whole, "state.json", json.dumps(facts).encode())
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            use()
        assert caught.value.exit_code == 2


def test_labels_that_differ_are_said(whole: Checkpoint, data: Path) -> None:
    facts = whole.state()
    forge(whole, "state.json", json.dumps(facts | {"labels": ["x", "y", "z"]}).encode())
    refused(lambda: restore(fresh(data), whole), "'x', 'y', 'z'", "'a', 'b', 'c'")


def test_settings_that_differ_are_refused(whole: Checkpoint, data: Path) -> None:
    refused(lambda: restore(fresh(data, network__embedding_size=16), whole), "does not fit")
    refused(lambda: restore(fresh(data, model="vae"), whole), "has no posterior")
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
    assert found.manifest()["images_seen"] == images


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
    assert checkpoint.FORMAT_VERSION == 1
    kinds = {path.suffix for path in folder(whole).iterdir()}
    assert kinds == {".json", ".safetensors"}

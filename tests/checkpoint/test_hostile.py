"""A hostile checkpoint under right digests is refused, for little time and memory."""

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.errors import ConfigError
from cluster.runs import checkpoint
from cluster.runs.checkpoint import Checkpoint, load_generator, restore
from cluster.storage.folder import FolderStore
from tests.support.tiny_checkpoints import (
    CPU,
    assert_refused,
    blob_path,
    folder_of,
    forge,
    forge_facts,
    fresh_state,
)


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
    state = fresh_state(data)
    tracemalloc.start()
    started_at_s = time.thread_time()
    assert_refused(lambda: restore(state, whole))
    if part == "ema":
        assert_refused(lambda: load_generator(whole, CPU), "ema")
    elif case not in {"other tensors", "a terabyte of nothing", "a header of a megabyte"}:
        # As `aalnet promote` reads it: any tensors will do, so what is no tensors is refused.
        assert_refused(
            lambda: whole.tensors(whole.manifest().blobs[part]), f"checkpoints/12/{part}-"
        )
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
    facts = json.loads((folder_of(whole) / "MANIFEST.json").read_bytes())
    facts["blobs"][part]["size_bytes"] = claimed
    forge_facts(whole, blobs=facts["blobs"])
    state = fresh_state(data)
    tracemalloc.start()
    started_at_s = time.thread_time()
    assert_refused(lambda: restore(state, whole), part, "claims")
    assert_refused(lambda: whole.tensors(whole.manifest().blobs[part]), part, "damaged")
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
    assert_refused(lambda: load_generator(whole, CPU), "ema-", "where its settings need")
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
    assert_refused(lambda: restore(fresh_state(data), whole), "claims")
    assert_refused(lambda: load_generator(whole, CPU), "claims")
    assert read == ["MANIFEST.json"] * 2

"""Manifests: every changed byte is found, and a hostile one is refused quickly and by name."""

import dataclasses
import hashlib
import json
import time
from typing import Any

import pytest

from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec
from aalnet.settings import Settings
from cluster.runs.manifest import FORMAT_VERSION, Blob, Manifest, parse_manifest

KEY = "runs/demo/checkpoints/12/MANIFEST.json"
EMA, TRAINING = Blob.of("ema", b"weights"), Blob.of("training", b"everything else")
MANIFEST = Manifest(
    images_seen=12,
    steps=3,
    spec=DataSpec(("a", "ü"), 1, 3),
    figures={"kid_unpaired_lite0": 1e-7, "images": 4, "none": None, "odd": float("nan")},
    settings={"model": "aalnet", "optimizer": {"lr": 5e-4, "widths": [4, 8]}},
    settings_digest="0" * 64,
    blobs={"ema": EMA, "training": TRAINING},
    writer="w",
)
WHOLE = MANIFEST.to_json()


def forged(**changes: Any) -> bytes:
    """A manifest with other fields and a digest that vouches for them."""
    facts = {k: v for k, v in json.loads(WHOLE).items() if k != "digest"} | changes
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return json.dumps({**facts, "digest": digest}, indent=1).encode()


def refusal(data: bytes) -> str:
    started_at_s = time.thread_time()
    with pytest.raises(CheckpointError) as caught:
        parse_manifest(data, KEY)
    assert time.thread_time() - started_at_s < 10
    message = str(caught.value)
    assert message.startswith(f"`{KEY}`")
    assert "\n" not in message
    assert len(message) < 400
    return message


# Whole


def test_what_is_written_is_read() -> None:
    found = parse_manifest(WHOLE, KEY)
    assert found.to_json() == WHOLE
    assert dataclasses.replace(found, figures=MANIFEST.figures) == MANIFEST
    assert found.spec.labels == ("a", "ü")
    assert found.blobs == {"ema": EMA, "training": TRAINING}
    assert found.digest == MANIFEST.digest == json.loads(WHOLE)["digest"]
    assert found.size_bytes == len(b"weights") + len(b"everything else")


def test_real_settings_are_read_back() -> None:
    manifest = dataclasses.replace(
        MANIFEST, settings=Settings().to_dict(), settings_digest=Settings().digest()
    )
    assert parse_manifest(manifest.to_json(), KEY).settings == Settings().to_dict()


def test_a_forged_one_is_well_formed() -> None:
    """So that what the tests below forge is refused for what it says alone."""
    assert forged() == WHOLE
    assert parse_manifest(forged(steps=4), KEY).steps == 4


@pytest.mark.parametrize(
    "change",
    [{"images_seen": 13}, {"steps": 4}, {"writer": "x"}, {"figures": {}}, {"settings": {}},
     {"settings_digest": "1" * 64}, {"spec": DataSpec(("a", "b"), 1, 3)},
     {"blobs": {"ema": EMA}}, {"blobs": {"ema": TRAINING, "training": EMA}}],
    ids=str,
)  # fmt: skip
def test_the_digest_covers_everything(change: dict[str, Any]) -> None:
    assert dataclasses.replace(MANIFEST, **change).digest != MANIFEST.digest


def test_a_blob_is_named_after_what_it_holds() -> None:
    assert EMA.name == f"ema-{hashlib.sha256(b'weights').hexdigest()[:16]}.safetensors"
    assert EMA.holds(b"weights")
    assert not any(EMA.holds(data) for data in (b"", b"weight", b"weightS", b"weights "))


# Damage


def test_every_changed_byte_is_found() -> None:
    """Every bit of every byte; and a blank that becomes another one, which JSON does not mind."""
    accepted = []
    for at, byte in enumerate(WHOLE):
        for other in (byte ^ bit for bit in (1, 2, 4, 8, 16, 32, 64, 128)):
            data = WHOLE[:at] + bytes([other]) + WHOLE[at + 1 :]
            try:
                parse_manifest(data, KEY)
            except CheckpointError:
                continue
            accepted.append((at, other))
    blanks = b" \t\n\r"
    for at, byte in enumerate(WHOLE):
        for other in set(blanks) - {byte} if byte in blanks else ():
            data = WHOLE[:at] + bytes([other]) + WHOLE[at + 1 :]
            with pytest.raises(CheckpointError, match="damaged"):
                parse_manifest(data, KEY)
    assert accepted == []


def test_every_truncation_and_every_addition_is_found() -> None:
    for end in range(len(WHOLE)):
        with pytest.raises(CheckpointError, match=r"damaged|format version"):
            parse_manifest(WHOLE[:end], KEY)
    for more in (b" ", b"\n", b"\0", b"}", b"x"):
        for data in (WHOLE + more, more + WHOLE):
            with pytest.raises(CheckpointError, match="damaged"):
                parse_manifest(data, KEY)


def test_the_same_facts_in_other_words_are_not_the_same() -> None:
    facts = json.loads(WHOLE)
    doubled = WHOLE.replace(b'"steps": 3', b'"steps": 4,\n "steps": 3')
    capital = WHOLE.replace(b"1e-07", b"1E-07")
    assert capital != WHOLE
    for data in (json.dumps(facts).encode(), json.dumps(facts, indent=1, sort_keys=True).encode(),
                 doubled, capital, WHOLE.decode().encode("utf-16")):  # fmt: skip
        assert "damaged" in refusal(data)


# Hostile


NAMES = [
    "../ema-0123456789abcdef.safetensors", "/etc/passwd", "ema-0123456789abcdef.safetensors/..",
    "..", "", ".", "a/ema-0123456789abcdef.safetensors", "ema-0123456789abcdef.safetensors\n",
    "ema-0123456789ABCDEF.safetensors", "ema-0123456789abcde.safetensors", "MANIFEST.json",
    "ema-0123456789abcdef.safetensors\0", "C:\\ema-0123456789abcdef.safetensors", "ema.pkl",
    "s3://bucket/ema-0123456789abcdef.safetensors", "ema-0123456789abcdef.pickle", "\u202eema",
    "é-0123456789abcdef.safetensors", "x" * 1_000_000,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:40]))
def test_names_that_lead_elsewhere(name: str) -> None:
    told = refusal(forged(blobs={"ema": {**vars(EMA), "name": name}}))
    assert "names the file" in told


@pytest.mark.parametrize("blob", [
    None, 5, "ema", [], {}, {"name": EMA.name}, {**vars(EMA), "more": 1},
    {**vars(EMA), "size_bytes": "7"}, {**vars(EMA), "size_bytes": 7.0},
    {**vars(EMA), "size_bytes": True}, {**vars(EMA), "size_bytes": -1},
    {**vars(EMA), "sha256": 5}, {**vars(EMA), "sha256": None}, ["x" * 10**6], {"x\ny": "\n" * 999},
], ids=lambda blob: repr(blob)[:50])  # fmt: skip
def test_blobs_that_are_none(blob: object) -> None:
    refusal(forged(blobs={"ema": blob}))


WRONG: dict[str, list[Any]] = {
    "images_seen": [None, "12", 12.0, True, [12]],
    "steps": [None, "3", 3.5, False],
    "labels": [None, "ab", {"a": 1}, [1], ["a", None], [["a"]], [True]],
    "condition_channels": [None, "3", 0, -1, 10**6, 10**400, 3.0, True],
    "target_channels": [None, "3", 0, -1, 10**18, [3]],
    "figures": [None, [], "kid", 5],
    "settings": [None, [], "model: gan", 5],
    "settings_digest": [None, 5, []],
    "blobs": [None, [], "ema", 5],
    "writer": [None, 5, []],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_wrong_types_and_values(field: str, value: object) -> None:
    refusal(forged(**{field: value}))


@pytest.mark.parametrize("field", json.loads(WHOLE))
def test_a_field_that_is_missing(field: str) -> None:
    facts = json.loads(forged())
    del facts[field]
    if field != "digest":
        rest = {key: value for key, value in facts.items() if key != "digest"}
        text = json.dumps(rest, sort_keys=True).encode()
        facts["digest"] = hashlib.sha256(text).hexdigest()
    refusal(json.dumps(facts, indent=1).encode())


@pytest.mark.parametrize("name", ["more", "", "x\ny", "x" * 10**6, "\x1b[2J"], ids=lambda n: n[:9])
def test_a_field_too_many(name: str) -> None:
    told = refusal(forged(**{name: 1}))
    assert "damaged" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    "version",
    [None, 1, 2, 4, 0, -3, "3", 2.5, True, [], {}, "x" * 10**6, "\n", 10**4000, [[[[]]]]],
    ids=lambda version: repr(version)[:20],
)  # fmt: skip
def test_another_version(version: object) -> None:
    told = refusal(forged(format_version=version))
    assert "format version" in told
    assert f"this release reads {FORMAT_VERSION}" in told


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 950, 980, 990, 1000, 5000, 200_000])
@pytest.mark.parametrize("where", ["figures", "settings", "blobs", "format_version", "top"])
def test_deep_nesting(where: str, depth: int) -> None:
    """At every depth it is refused, or read where it may stand; nothing else is raised."""
    deep = "[" * depth + "]" * depth
    if where == "top":
        data = deep.encode()
    else:
        marked = {"figures": {"kid": "@"}, "settings": {"a": "@"}, "blobs": {"ema": "@"}}
        data = forged(**{where: marked.get(where, "@")}).replace(b'"@"', deep.encode())
    started_at_s = time.thread_time()
    with pytest.raises(CheckpointError):
        parse_manifest(data, KEY)
    assert time.thread_time() - started_at_s < 10


def test_deep_nesting_under_a_right_digest() -> None:
    """Where a digest can still be made, too."""
    deep: list[Any] = []
    for depth in range(1, 900):
        deep = [deep]
        facts = {k: v for k, v in json.loads(WHOLE).items() if k != "digest"}
        try:
            data = forged(figures={"kid": deep}) if depth % 40 == 0 else b""
        except RecursionError:
            text = json.dumps(facts | {"figures": {"kid": deep}}, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()
            data = json.dumps(facts | {"figures": {"kid": deep}, "digest": digest}).encode()
        if data:
            try:
                assert parse_manifest(data, KEY).figures == {"kid": deep}
            except CheckpointError as error:
                assert "damaged" in str(error)  # noqa: PT017, either way is right


def test_a_large_one_takes_a_bounded_time() -> None:
    """The reader takes no more than LIMIT_BYTES; so much is refused in time, whatever it is."""
    many = {f"f{number}": number for number in range(150_000)}
    for data in (forged(nothing=many), b"[" + b"1," * 2_000_000 + b"1]", b'"' + b"x" * 4_000_000,
                 b"1" * 4_000_000, b"{" * 4_000_000):  # fmt: skip
        started_at_s = time.thread_time()
        with pytest.raises(CheckpointError):
            parse_manifest(data, KEY)
        assert time.thread_time() - started_at_s < 20

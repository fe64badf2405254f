"""What a checkpoint is: one JSON file that names its blobs, their digests, and all small facts.

The manifest is created last and only once, so it commits settings, counters, figures and digests
together. Blobs are named after their own digest: two writers of one checkpoint cannot mix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec

FORMAT_VERSION = 3
MOST_CHANNELS = 64  # of a picture; a network is made for as many as a manifest names
LIMIT_BYTES = 4 * 2**20  # of a manifest; settings and figures take a few thousand
BLOB_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}\.safetensors")
FIELDS: dict[str, type] = {
    "images_seen": int, "steps": int, "labels": list, "condition_channels": int,
    "target_channels": int, "figures": dict, "settings": dict, "settings_digest": str,
    "blobs": dict, "writer": str, "digest": str,
}  # fmt: skip


@dataclass(frozen=True)
class Blob:
    """One file of tensors."""

    name: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, part: str, data: bytes) -> Blob:
        """The blob that holds `data`, named after its digest."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(f"{part}-{digest[:16]}.safetensors", len(data), digest)

    def holds(self, data: bytes) -> bool:
        """Whether these bytes have its size and digest."""
        return len(data) == self.size_bytes and hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Manifest:
    """The facts of one checkpoint. `blobs` by part: `ema`, `training`."""

    images_seen: int
    steps: int
    spec: DataSpec
    figures: Mapping[str, Any]
    settings: Mapping[str, Any]
    settings_digest: str
    blobs: Mapping[str, Blob]
    writer: str  # unlike any other start of a worker: a lost reply is told from a lost race

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the manifest, and through it over every blob."""
        return _digest(self._facts())

    @property
    def size_bytes(self) -> int:
        """Of all blobs together."""
        return sum(blob.size_bytes for blob in self.blobs.values())

    def to_json(self) -> bytes:
        """The file, with its own digest last."""
        facts = self._facts()
        return json.dumps({**facts, "digest": _digest(facts)}, indent=1).encode()

    def _facts(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "images_seen": self.images_seen,
            "steps": self.steps,
            "labels": list(self.spec.labels),
            "condition_channels": self.spec.condition_channels,
            "target_channels": self.spec.target_channels,
            "figures": dict(self.figures),
            "settings_digest": self.settings_digest,
            "settings": dict(self.settings),
            "writer": self.writer,
            "blobs": {part: vars(blob) for part, blob in self.blobs.items()},
        }


def parse_manifest(data: bytes, key: str) -> Manifest:
    """Read a manifest that anybody may have written.

    Raises:
        CheckpointError: it is damaged, of another format version, or names files elsewhere.
    """
    try:
        manifest = _checked(data, key)
        if manifest.to_json() != data:  # a blank for a line's end too: no byte may differ
            raise CheckpointError(f"`{key}` is damaged: its digest differs; use another checkpoint")
    except RecursionError as error:
        raise CheckpointError(f"`{key}` is damaged: {error}; use another checkpoint") from error
    return manifest


def _checked(data: bytes, key: str) -> Manifest:
    facts = _mapping(data, key)
    version = facts.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"`{key}` has format version {version!r:.80}, this release reads {FORMAT_VERSION}"
        )
    wrong = [name for name, kind in FIELDS.items() if type(facts.get(name)) is not kind]
    if wrong or facts.keys() != FIELDS.keys():
        named = wrong[0] if wrong else sorted(facts.keys() - FIELDS.keys())[0]
        raise CheckpointError(
            f"`{key}` is damaged: no proper {named!r:.80}; use another checkpoint"
        )
    if facts.pop("digest") != _digest({"format_version": version, **facts}):
        raise CheckpointError(f"`{key}` is damaged: its digest differs; use another checkpoint")
    if not all(isinstance(label, str) for label in facts["labels"]):
        raise CheckpointError(f"`{key}` is damaged: labels must be words; use another checkpoint")
    channels = facts["condition_channels"], facts["target_channels"]
    if not all(0 < count <= MOST_CHANNELS for count in channels):
        raise CheckpointError(f"`{key}` is of {channels!r:.80} channels; use another checkpoint")
    return Manifest(
        images_seen=facts["images_seen"],
        steps=facts["steps"],
        spec=DataSpec(tuple(facts["labels"]), *channels),
        figures=facts["figures"],
        settings=facts["settings"],
        settings_digest=facts["settings_digest"],
        blobs={part: _blob(blob, key) for part, blob in facts["blobs"].items()},
        writer=facts["writer"],
    )


def _blob(facts: Any, key: str) -> Blob:
    kinds = {"name": str, "size_bytes": int, "sha256": str}
    if not isinstance(facts, dict) or {name: type(v) for name, v in facts.items()} != kinds:
        raise CheckpointError(f"`{key}` is damaged: {facts!r:.80} is no blob; use another one")
    if not BLOB_NAME.fullmatch(facts["name"]) or facts["size_bytes"] < 0:
        raise CheckpointError(f"`{key}` names the file {facts['name']!r:.80}; use another one")
    return Blob(**facts)


def _mapping(data: bytes, key: str) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"`{key}` is damaged: {error}; use another checkpoint") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"`{key}` is damaged: not an object; use another checkpoint")
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

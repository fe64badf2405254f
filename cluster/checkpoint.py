"""Checkpoints: safetensors, `state.json`, and a manifest written last.

    checkpoints/<images>/{<network>,ema,<side>_optimizer}.safetensors  state.json  MANIFEST.json

A checkpoint exists when its manifest does. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec, Generator
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState, load_network
from cluster.runs import Run, find_run
from cluster.store import BlobMissing, Store, open_store

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
STATE = {
    "images_seen": int, "steps": int, "labels": list, "condition_channels": int,
    "target_channels": int, "figures": dict, "settings": dict,
}  # fmt: skip
CHECKPOINT_PATH = re.compile(
    r"(?:(?P<storage>.*)/)?runs/(?P<run>[^/]+)(?:/checkpoints/(?P<images>\d+))?/?"
)


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint of a run."""

    run: Run
    images: int

    def key(self, *parts: str) -> str:
        return self.run.key("checkpoints", str(self.images), *parts)

    def manifest(self) -> dict[str, Any]:
        """Sizes and digests of every blob.

        Raises:
            CheckpointError: missing, not JSON, or of another format version.
        """
        found = _json(self.run.store, self.key(MANIFEST))
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"`{self.key()}` has format version {version}, this release reads {FORMAT_VERSION}"
            )
        if not isinstance(found.get("files"), dict):
            raise CheckpointError(f"`{self.key(MANIFEST)}` lists no files; it is damaged")
        return found

    def state(self) -> dict[str, Any]:
        """`state.json`: counters, settings, labels and the figures at that time.

        Raises:
            CheckpointError: it is missing, damaged, or not what `save` writes.
        """
        key = self.key("state.json")
        found = _parse_json(self.blob("state.json"), key)
        wrong = [name for name, kind in STATE.items() if not isinstance(found.get(name), kind)]
        if wrong:
            raise CheckpointError(f"`{key}` has no proper `{wrong[0]}`; use another checkpoint")
        return found

    def blob(self, name: str) -> bytes:
        """A blob after its size and digest were checked.

        Raises:
            CheckpointError: missing or not what the manifest says.
        """
        expected = self.manifest()["files"].get(name)
        if not isinstance(expected, dict):
            raise CheckpointError(f"`{self.key()}` has no {name}")
        try:
            data = self.run.store.read(self.key(name))
        except BlobMissing as error:
            raise CheckpointError(f"`{self.key(name)}` is missing; use another one") from error
        if len(data) != expected.get("bytes") or _digest(data) != expected.get("sha256"):
            raise CheckpointError(
                f"`{self.key(name)}` is damaged: {len(data)} bytes do not have the digest in "
                f"{MANIFEST}; use another checkpoint of the run"
            )
        return data

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file, on the CPU."""
        try:
            return safetensors.torch.load(self.blob(f"{name}.safetensors"))
        except SafetensorError as error:
            raise CheckpointError(f"`{self.key(name)}.safetensors`: {error}") from error


def save(run: Run, state: TrainState, figures: dict[str, Any]) -> int:
    """Write the state as a checkpoint; returns its bytes. The manifest goes last."""
    checkpoint = Checkpoint(run, state.images_seen)
    blobs = {
        f"{name}.safetensors": safetensors.torch.save(_portable(tensors))
        for name, tensors in state.tensors().items()
    }
    blobs["state.json"] = json.dumps({
        "format_version": FORMAT_VERSION,
        "images_seen": state.images_seen,
        "steps": state.steps,
        "labels": state.spec.labels,
        "condition_channels": state.spec.condition_channels,
        "target_channels": state.spec.target_channels,
        "figures": figures,
        "settings": state.settings.to_dict(),
    }, indent=1).encode()  # fmt: skip
    for name, data in blobs.items():
        run.store.write(checkpoint.key(name), data)
    manifest = {
        "format_version": FORMAT_VERSION,
        "images_seen": state.images_seen,
        "settings_digest": state.settings.digest(),
        "files": {
            name: {"bytes": len(data), "sha256": _digest(data)} for name, data in blobs.items()
        },
    }
    run.store.write(checkpoint.key(MANIFEST), json.dumps(manifest, indent=1).encode())
    return sum(len(data) for data in blobs.values())


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a state made with the same settings.

    Raises:
        CheckpointError: it is damaged or does not fit.
    """
    facts = checkpoint.state()
    if spec_of(facts) != state.spec:
        raise CheckpointError(
            f"`{checkpoint.key()}` was trained on labels {list(facts['labels'])}, the data set "
            f"has {list(state.spec.labels)}; use the same data, or another --run"
        )
    state.load_tensors({name: checkpoint.tensors(name) for name in state.tensors()})
    state.images_seen, state.steps = int(facts["images_seen"]), int(facts["steps"])


def load_generator(checkpoint: Checkpoint, device: torch.device) -> tuple[Generator, Settings]:
    """The moving average of G, which users sample from, and its settings."""
    facts = checkpoint.state()
    settings = parse_settings(facts["settings"])
    generator = Generator(settings, spec_of(facts))
    if settings.run.precision == "float64":
        generator = generator.double()
    load_network(generator, checkpoint.tensors("ema"), "ema")
    return generator.to(device).float().requires_grad_(False).eval(), settings


def spec_of(facts: dict[str, Any]) -> DataSpec:
    """The data facts in a `state.json`."""
    return DataSpec(
        tuple(facts["labels"]), int(facts["condition_channels"]), int(facts["target_channels"])
    )


def checkpoints(run: Run) -> list[Checkpoint]:
    """All whole checkpoints of a run, oldest first."""
    suffix = f"/{MANIFEST}"
    keys = run.store.keys(run.key("checkpoints/"))
    found = [key.removesuffix(suffix).rpartition("/")[2] for key in keys if key.endswith(suffix)]
    return [Checkpoint(run, images) for images in sorted(int(x) for x in found if x.isdecimal())]


def find_checkpoint(store: Store, name: str) -> Checkpoint:
    """`RUN` (its newest), `RUN@IMAGES`, `RUN@best`, or the path of a checkpoint's folder.

    Raises:
        CheckpointError: there is no such run or checkpoint.
    """
    if path := CHECKPOINT_PATH.fullmatch(name):
        store = open_store(path["storage"] or ".")
        name = f"{path['run']}@{path['images']}" if path["images"] else path["run"]
    run_name, _, wanted = name.partition("@")
    run, _ = find_run(store, run_name)
    found = checkpoints(run)
    if not found:
        raise CheckpointError(f"run `{run_name}` has no checkpoint yet; let it train longer")
    if not wanted:
        return found[-1]
    if wanted == "best":
        return best(found) or found[-1]
    matching = [c for c in found if str(c.images) == re.sub("[,_]", "", wanted)]
    if not matching:
        known = ", ".join(str(c.images) for c in found)
        raise CheckpointError(f"run `{run_name}` has no checkpoint at {wanted}; it has {known}")
    return matching[0]


def best(found: list[Checkpoint]) -> Checkpoint | None:
    """The checkpoint of the lowest KID, if any was measured."""
    scored = [(score, c) for c in found if (score := _score(c)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def prune(run: Run, keep_last: int) -> None:
    """Keep the newest `keep_last` and the best; each manifest goes first."""
    found = checkpoints(run)
    kept = {c.images for c in found[-keep_last:]}
    if (winner := best(found)) is not None:
        kept.add(winner.images)
    for checkpoint in found:
        if checkpoint.images in kept:
            continue
        run.store.delete(checkpoint.key(MANIFEST))
        for key in run.store.keys(checkpoint.key() + "/"):
            run.store.delete(key)


def _score(checkpoint: Checkpoint) -> float | None:
    try:
        figures = checkpoint.state()["figures"]
    except CheckpointError:
        return None  # a damaged one is nobody's best; reading it for use says so
    scores = [v for k, v in figures.items() if k.startswith("kid") and not k.endswith("condition")]
    return float(scores[0]) if scores else None


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(store: Store, key: str) -> dict[str, Any]:
    try:
        return _parse_json(store.read(key), key)
    except BlobMissing as error:
        raise CheckpointError(f"`{key}` is missing; see `aalnet runs show`") from error


def _parse_json(data: bytes, key: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{key}` is damaged: {error}; use another checkpoint") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"`{key}` is damaged: not an object; use another checkpoint")
    return found

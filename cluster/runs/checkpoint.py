"""Checkpoints: safetensors, and a manifest that is created last.

    checkpoints/<images>/{ema,training}-<digest>.safetensors  MANIFEST.json

A checkpoint exists when its manifest does. `ema` is what users sample from; `training` holds
all else that a resumed run needs. Nothing here is ever unpickled.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from aalnet.errors import CheckpointError
from aalnet.networks import Generator
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState, load_network
from cluster.runs.figures import score_of
from cluster.runs.manifest import LIMIT_BYTES, Blob, Manifest, parse_manifest
from cluster.runs.run import MANIFEST, Run, find_run
from cluster.runs.snapshot import Files, Snapshot, take_snapshot
from cluster.storage.location import open_store
from cluster.storage.store import BlobExists, BlobMissing, BlobTooLarge, Store

PARTS = ("ema", "training")
HEADER_BYTES = 2**20  # of a safetensors file, at most; a network's names take a tenth of it
WRITER = uuid.uuid4().hex  # this process
CHECKPOINT_PATH = re.compile(
    r"(?:(?P<storage>.*)/)?runs/(?P<run>[^/]+)(?:/checkpoints/(?P<images>\d+))?/?"
)
T = TypeVar("T")


class CheckpointTaken(CheckpointError):
    """Another process has written this checkpoint of the run, with other numbers in it."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run. Making the object touches nothing."""

    run: Run
    images: int

    def key(self, *parts: str) -> str:
        """The store key of a file of this checkpoint."""
        return self.run.key("checkpoints", str(self.images), *parts)

    def manifest(self) -> Manifest:
        """Its facts and the digests of its blobs.

        Raises:
            CheckpointError: missing, damaged, of another format version, or of other images.
        """
        key = self.key(MANIFEST)
        try:
            manifest = parse_manifest(self.run.store.read(key, LIMIT_BYTES), key)
        except BlobMissing as error:
            raise CheckpointError(f"`{key}` is missing; see `aalnet runs show`") from error
        except BlobTooLarge as error:
            raise CheckpointError(f"{error}; use another checkpoint") from error
        if manifest.images_seen != self.images:
            raise CheckpointError(
                f"`{key}` is of {manifest.images_seen} images; use another checkpoint"
            )
        return manifest

    def verify(self, parts: Sequence[str] = PARTS) -> Manifest:
        """Read these parts and check every byte.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        manifest = self.manifest()
        for part in parts:
            self.tensors(self.blob(manifest, part))
        return manifest

    def blob(self, manifest: Manifest, part: str) -> Blob:
        """The blob of a part. Raises CheckpointError where there is none."""
        if part not in manifest.blobs:
            raise CheckpointError(f"`{self.key()}` has no {part}; use another checkpoint")
        return manifest.blobs[part]

    def tensors(self, blob: Blob) -> dict[str, Tensor]:
        """The tensors of one blob, on the CPU, after its size and digest were checked.

        Raises:
            CheckpointError: missing, damaged, or not safetensors.
        """
        key = self.key(blob.name)
        try:
            data = self.run.store.read(key, blob.size_bytes)
        except BlobMissing as error:
            raise CheckpointError(f"`{key}` is missing; use another checkpoint") from error
        except BlobTooLarge as error:
            raise CheckpointError(f"`{key}` is damaged: {error}; use another one") from error
        if not blob.holds(data):
            reason = f"its {len(data):,} bytes do not have the digest in {MANIFEST}"
            raise CheckpointError(
                f"`{key}` is damaged: {reason}; use another checkpoint of the run"
            )
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"`{key}` is damaged: {error}; use another one") from error


def write(run: Run, snapshot: Snapshot) -> Manifest:
    """Write a snapshot as a checkpoint: blobs first, then the manifest, created once.

    Raises:
        CheckpointTaken: another process wrote this checkpoint, with other numbers.
        StoreError: the storage failed; the same call may be made again.
    """
    checkpoint = Checkpoint(run, snapshot.images_seen)
    parts = {part: safetensors.torch.save(tensors) for part, tensors in snapshot.parts.items()}
    manifest = Manifest(
        images_seen=snapshot.images_seen,
        steps=snapshot.steps,
        settings=snapshot.settings.to_dict(),
        settings_digest=snapshot.settings.digest(),
        blobs={part: Blob.of(part, data) for part, data in parts.items()},
        writer=WRITER,
        **snapshot.facts,
    )
    for part, data in parts.items():
        run.store.write(checkpoint.key(manifest.blobs[part].name), data)
    _commit(checkpoint, manifest)
    return manifest


def _commit(checkpoint: Checkpoint, manifest: Manifest) -> None:
    store, key = checkpoint.run.store, checkpoint.key(MANIFEST)
    try:
        store.create(key, manifest.to_json())
    except BlobExists as error:
        try:
            theirs = checkpoint.verify()
        except CheckpointError:  # a damaged one, passed over when the run resumed
            store.delete(key)
            store.create(key, manifest.to_json())
            return
        if theirs.blobs != manifest.blobs:
            raise CheckpointTaken(
                f"another process trains run `{checkpoint.run.name}`: it wrote the checkpoint at "
                f"{checkpoint.images:,} images; stop one of the two"
            ) from error


def save(run: Run, state: TrainState, figures: Mapping[str, Any]) -> Manifest:
    """Write the state as a checkpoint, and wait; the loop has cluster/runs/saver.py do it."""
    return write(run, take_snapshot(state, figures))


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a state made with the same settings.

    Raises:
        CheckpointError: it is damaged or does not fit; the state may then hold a part of it.
    """
    manifest = checkpoint.manifest()
    if manifest.spec != state.spec:
        raise CheckpointError(
            f"`{checkpoint.key()}` was trained on labels {list(manifest.spec.labels)}, the data "
            f"set has {list(state.spec.labels)}; use the same data, or another --run"
        )
    own = state.tensors()
    ema = _read_part(checkpoint, manifest, "ema", _bytes_of(own["ema"].values()))
    rest = [t for file, tensors in own.items() if file != "ema" for t in tensors.values()]
    # Before the first step the optimizers hold nothing to measure by.
    training = _read_part(checkpoint, manifest, "training", 4 * _bytes_of(rest))
    files: Files = {"ema": ema, **{file: {} for file in own if file != "ema"}}
    for key, tensor in training.items():
        file, _, name = key.partition("/")
        files.setdefault(file, {})[name] = tensor
    state.load_tensors(files)
    state.images_seen, state.steps = manifest.images_seen, manifest.steps


def load_generator(checkpoint: Checkpoint, device: torch.device) -> tuple[Generator, Settings]:
    """The moving average of G, which users sample from, and its settings.

    Raises:
        CheckpointError: it is damaged, or its tensors are not those of its settings.
    """
    manifest = checkpoint.manifest()
    settings = parse_settings(dict(manifest.settings))
    with torch.device("meta"):  # sizes before anything is allocated or downloaded
        generator = Generator(settings, manifest.spec)
    if settings.run.precision == "float64":
        generator = generator.double()
    tensors = _read_part(checkpoint, manifest, "ema", _bytes_of(generator.state_dict().values()))
    load_network(generator.to_empty(device="cpu"), tensors, "ema")
    return generator.to(device).float().requires_grad_(False).eval(), settings


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def checkpoints(run: Run) -> list[Checkpoint]:
    """All checkpoints of a run that have a manifest, oldest first."""
    return [Checkpoint(run, images) for images in run.checkpoint_images()]


def newest_whole(
    run: Run, use: Callable[[Checkpoint], T], warn: Callable[[str], None]
) -> tuple[Checkpoint, T] | None:
    """The newest checkpoint that can be used, and what `use` made of it; None without any.

    Tells `warn` of every damaged one that it passes over.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used.
    """
    candidates = checkpoints(run)
    last: CheckpointError | None = None
    for candidate in reversed(candidates):
        try:
            return candidate, use(candidate)
        except CheckpointError as error:
            last = error
            warn(f"checkpoint at {candidate.images:,} images is passed over: {error}")
    if last is not None:
        raise CheckpointError(f"no checkpoint of run `{run.name}` can be used: {last}") from last
    return None


def find_checkpoint(
    store: Store, name: str, warn: Callable[[str], None] = _to_stderr
) -> Checkpoint:
    """`RUN` (its newest whole one), `RUN@IMAGES`, `RUN@best`, or the path of a checkpoint's folder.

    Tells `warn` of every damaged one that it passes over.

    Raises:
        CheckpointError: there is no such run or checkpoint.
    """
    if path := CHECKPOINT_PATH.fullmatch(name):
        store = open_store(path["storage"] or ".")
        name = f"{path['run']}@{path['images']}" if path["images"] else path["run"]
    run_name, _, which = name.partition("@")
    run, settings = find_run(store, run_name)
    if not which:
        newest = newest_whole(run, lambda candidate: candidate.verify(["ema"]), warn)
        if newest is None:
            raise CheckpointError(f"run `{run_name}` has no checkpoint yet; let it train longer")
        return newest[0]
    candidates = checkpoints(run)
    if not candidates:
        raise CheckpointError(f"run `{run_name}` has no checkpoint yet; let it train longer")
    if which == "best":
        ranked = by_figure(candidates, settings.run.best_by)
        return ranked[0] if ranked else candidates[-1]
    matching = [c for c in candidates if str(c.images) == re.sub("[,_]", "", which)]
    if not matching:
        existing = ", ".join(str(c.images) for c in candidates)
        raise CheckpointError(f"run `{run_name}` has no checkpoint at {which}; it has {existing}")
    return matching[0]


def by_figure(candidates: Sequence[Checkpoint], name: str) -> list[Checkpoint]:
    """The checkpoints that have a figure, best first. A damaged one is nobody's best."""
    scored = [(score, c) for c in candidates if (score := _score(c, name)) is not None]
    return [c for _, c in sorted(scored, key=lambda pair: (pair[0], -pair[1].images))]


def _score(checkpoint: Checkpoint, name: str) -> float | None:
    try:
        return score_of(checkpoint.manifest().figures, name)
    except CheckpointError:
        return None


def _read_part(
    checkpoint: Checkpoint, manifest: Manifest, part: str, expected_bytes: int
) -> dict[str, Tensor]:
    blob = checkpoint.blob(manifest, part)
    least = 0 if part == "training" else expected_bytes  # before the first step it is smaller
    if not least <= blob.size_bytes <= expected_bytes + HEADER_BYTES:
        raise CheckpointError(
            f"`{checkpoint.key(blob.name)}` claims {blob.size_bytes:,} bytes where its settings "
            f"need {expected_bytes:,}; use another checkpoint"
        )
    return checkpoint.tensors(blob)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

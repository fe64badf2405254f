"""Promoted models: a name that points to one checkpoint, `models/<name>.json`.

The endpoint follows the name; retention never removes what a name points to, now or before.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import parse_settings
from cluster.runs.checkpoint import Checkpoint
from cluster.runs.figures import silence
from cluster.runs.run import Run, latest
from cluster.storage.store import BlobMissing, BlobTooLarge, Store

MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label: Kubernetes names
LIMIT_BYTES = 2**20  # of a model's file
REMEMBERED = 10  # earlier promotions that one can roll back to
FIELDS = {"model": str, "run": str, "images": int, "digest": str, "promoted_at_s": float}


@dataclass(frozen=True)
class Promotion:
    """One promotion of a checkpoint to a model's name."""

    model: str
    run: str
    images: int
    digest: str  # of the checkpoint's manifest
    promoted_at_s: float  # since the epoch


def read_model(store: Store, name: str) -> Promotion:
    """What a model's name points to.

    Raises:
        CheckpointError: there is no such model, or its file is damaged.
    """
    return _existing(store, name)[0]


def promote(store: Store, checkpoint: Checkpoint, name: str) -> Promotion:
    """Point a name to a checkpoint, once every blob of it was read and checked.

    Raises:
        ConfigError: the name cannot be one.
        CheckpointError: the checkpoint is damaged.
    """
    _check_name(name)
    manifest = checkpoint.verify()
    now = Promotion(
        name, checkpoint.run.name, checkpoint.images, manifest.digest, round(time.time(), 3)
    )
    try:
        before = _history(store, name)
    except BlobMissing:
        before = []
    _write(store, name, [now, *before])
    return now


def roll_back(store: Store, name: str) -> Promotion:
    """Point a name to what it pointed to before; doing so again goes further back.

    Raises:
        CheckpointError: there is no such model, or nothing before.
    """
    now, *before = _existing(store, name)
    if not before:
        raise CheckpointError(
            f"model `{name}` was promoted once, to {now.run}@{now.images}; there is nothing to "
            "roll back to"
        )
    _write(store, name, before)
    return before[0]


def checkpoint_of(store: Store, promotion: Promotion) -> Checkpoint:
    """The promoted checkpoint.

    Raises:
        CheckpointError: it is gone, damaged, or another one now stands in its place.
    """
    checkpoint = Checkpoint(Run(store, promotion.run), promotion.images)
    if checkpoint.manifest().digest != promotion.digest:
        raise CheckpointError(
            f"`{checkpoint.key()}` is not the one that was promoted to `{promotion.model}`; "
            "promote it again, or roll back"
        )
    return checkpoint


def list_models(store: Store) -> list[str]:
    """Names of all models."""
    keys = [key.removeprefix("models/") for key in store.keys("models/")]
    names = [key.removesuffix(".json") for key in keys if key.endswith(".json")]
    return [name for name in names if MODEL_NAME.fullmatch(name)]


def promoted_images(run: Run) -> list[int]:
    """Images of the run's checkpoints that a model points to, or can be rolled back to."""
    names = list_models(run.store)
    return [p.images for name in names for p in _history(run.store, name) if p.run == run.name]


def _existing(store: Store, name: str) -> list[Promotion]:
    try:
        return _history(store, name)
    except BlobMissing:
        close = difflib.get_close_matches(name, list_models(store), n=1)
        hint = f"did you mean `{close[0]}`?" if close else "make it with `aalnet promote`"
        raise CheckpointError(f"model `{name}` does not exist in {store.uri}; {hint}") from None


def _history(store: Store, name: str) -> list[Promotion]:
    """All remembered promotions, newest first. Raises BlobMissing."""
    _check_name(name)
    key = f"models/{name}.json"
    try:
        entries: Any = json.loads(store.read(key, LIMIT_BYTES))["promotions"]
        history = [Promotion(**facts) for facts in entries]
    except (BlobTooLarge, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"`{key}` is damaged: {error!r:.80}; remove it and promote again"
        ) from error
    proper = all(
        isinstance(getattr(p, field), kind) for p in history for field, kind in FIELDS.items()
    )
    if not history or not proper:
        raise CheckpointError(f"`{key}` is damaged; remove it and promote again")
    return history


def _write(store: Store, name: str, history: list[Promotion]) -> None:
    facts = {"promotions": [asdict(promotion) for promotion in history[:REMEMBERED]]}
    store.write(f"models/{name}.json", json.dumps(facts, indent=1).encode())


def _check_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(
            f"model name `{name}` must be 1 to 63 small letters, digits or `-`, starting and "
            "ending with a letter or digit"
        )


def silence_of(checkpoint: Checkpoint) -> str | None:
    """What to tell where its samples no longer differ, by its own evaluation or the last before.

    Raises:
        CheckpointError: it is damaged.  StoreError: the storage fails.
    """
    manifest = checkpoint.manifest()
    total_images = parse_settings(dict(manifest.settings)).run.images
    figures, images = manifest.figures, checkpoint.images
    if not figures:  # one of SIGTERM was not measured
        before = [each for each in checkpoint.run.records() if each["images"] <= images]
        figures = latest(before, "evaluation") or {}
    return silence(figures, images, total_images)

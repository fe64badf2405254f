"""Which checkpoints stay, and what is swept: last N, best M, every J-th, and every promoted one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from aalnet.settings import RunSettings
from cluster.runs.checkpoint import Checkpoint, by_figure, checkpoints
from cluster.runs.promotions import promoted_images
from cluster.runs.run import MANIFEST, Run
from cluster.storage.store import Entry

UNFINISHED_S = 3600.0  # what nobody finished for so long is nobody's any more


def to_keep(
    images: Sequence[int], best_first: Sequence[int], promoted: Sequence[int], rules: RunSettings
) -> set[int]:
    """Of checkpoints at `images` (ascending), those that stay."""
    stay = {*images[-rules.keep_last :], *best_first[: rules.keep_best], *promoted}
    if rules.keep_every:
        first_of: dict[int, int] = {}  # a checkpoint of SIGTERM lies between two of the schedule
        for at in images:
            first_of.setdefault(at // rules.checkpoint_every_images, at)
        stay |= {at for number, at in first_of.items() if number and not number % rules.keep_every}
    return stay & set(images)


def prune(run: Run, rules: RunSettings, newest: int | None = None) -> list[int]:
    """Remove the checkpoints that no rule keeps, each manifest first; gives their images.

    Those beyond `newest` were damaged when the run resumed: they count for nothing, and stay.
    """
    candidates = [c for c in checkpoints(run) if newest is None or c.images <= newest]
    best_first = [c.images for c in by_figure(candidates, rules.best_by)] if rules.keep_best else []
    images = [c.images for c in candidates]
    if len(images) <= rules.keep_last:
        return []
    stay = to_keep(images, best_first, promoted_images(run), rules)
    doomed = [c for c in candidates if c.images not in stay]
    for checkpoint in doomed:
        run.store.delete(checkpoint.key(MANIFEST))
        for key in run.store.keys(checkpoint.key() + "/"):
            run.store.delete(key)
    return [c.images for c in doomed]


def sweep(run: Run, older_than_s: float = UNFINISHED_S, *, dry_run: bool = False) -> list[Entry]:
    """Remove blobs that no manifest names, and unfinished uploads, all older than a time.

    A blob of a checkpoint that is being written right now is younger.
    """
    before_s = time.time() - older_than_s
    prefix = run.key("checkpoints/")
    entries = run.store.entries(prefix)
    named = _named(run, entries)
    leftovers = [
        entry for entry in entries if entry.key not in named and entry.modified_s <= before_s
    ]
    if not dry_run:
        for entry in leftovers:
            run.store.delete(entry.key)
    unfinished = run.store.sweep(run.key(""), older_than_s, dry_run=dry_run)
    return [*leftovers, *(Entry(key, 0, 0.0) for key in unfinished)]


def _named(run: Run, entries: Sequence[Entry]) -> set[str]:
    """Keys of all manifests and of what they name. A damaged manifest keeps its whole folder."""
    folders: dict[str, list[str]] = {}
    for entry in entries:
        folders.setdefault(entry.key.rpartition("/")[0], []).append(entry.key)
    named: set[str] = set()
    for folder, keys in folders.items():
        if f"{folder}/{MANIFEST}" not in keys:
            continue
        try:
            number = folder.rpartition("/")[2]
            manifest = Checkpoint(run, int(number)).manifest()
            named |= {f"{folder}/{blob.name}" for blob in manifest.blobs.values()}
            named.add(f"{folder}/{MANIFEST}")
        except ValueError:  # CheckpointError is one: reading it for use says what is wrong
            named |= set(keys)
    return named

"""`aalnet data pack` as a whole: list, plan shards, do what is missing, say what was left out.

A shard counts once its manifest stands beside it and has the digest of what is planned, so the
same call goes on after a kill, and packs anew just the shards whose pictures have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from aalnet.errors import DataError
from cluster.data.packing import FORMAT, Form, ShardPlan, Side, modes_of
from cluster.data.shards import S3, UNFINISHED
from cluster.data.sources import PairFiles, Layout, Listing, Rejected, list_source
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing, Store

SPLITS = ("train", "test")
SHARD_BYTES = 256 * 2**20
PROBED = 32  # pairs whose headers decide the modes of the data set
ABOUT = "pack.json"  # what packed the folder; says that it is ours
REJECTED = "rejected.jsonl"

ShardManifest = dict[str, Any]
PackShards = Callable[[list[ShardPlan]], Iterable[ShardManifest]]
OnProgress = Callable[[int, int, int], None]  # pairs done, pairs in all, rejected so far


@dataclass(frozen=True)
class PackOptions:
    """The options of one call of `aalnet data pack`."""

    source: str
    out: str
    layout: Layout | None = None
    label: str | None = None
    condition_side: Side = "left"
    size_px: int | None = None
    test_share: float = 0.1
    rows_per_shard: int = 1024


@dataclass(frozen=True)
class PackReport:
    """What a call has packed and left out."""

    layout: Layout
    rows: dict[str, int]  # by split
    labels: dict[str, int]
    bytes: int
    shards: int
    shards_done_before: int
    passed_over: int
    rejected: list[Rejected]


def pack(options: PackOptions, run: PackShards, progress: OnProgress) -> PackReport:
    """Pack a source into `out`; `run` does the jobs and gives their manifests as they come.

    Raises:
        DataError: nothing can be packed, or `out` holds another data set.
        StoreError: the storage failed; the same call goes on.
    """
    store = open_store(options.out)
    own = _require_own(store)
    listing = list_source(options.source, options.layout, options.label, out=_root(options.out, store))
    jobs = plan_shards(options, listing, store.uri)
    done = _done(store, jobs) if own else {}
    missing = [job for job in jobs if job.manifest_key not in done]
    marks = [f"{split}/{UNFINISHED}" for split in SPLITS]
    if missing or not own:
        store.write(ABOUT, json.dumps({"format": FORMAT, "status": "packing"}).encode())
        for mark in marks:
            store.write(mark, b"{}")
    manifests = list(done.values())
    total, done_pairs = len(listing.items), sum(_items(m) for m in manifests)
    left_out = len(listing.rejected) + sum(len(m["rejected"]) for m in manifests)
    progress(done_pairs, total, left_out)
    for manifest in run(missing):
        manifests.append(manifest)
        done_pairs += _items(manifest)
        left_out += len(manifest["rejected"])
        progress(done_pairs, total, left_out)
    _forget_others(store, jobs)
    packed = _summed(listing, manifests, len(done))
    lines = [json.dumps(asdict(one)) for one in packed.rejected]
    store.write(REJECTED, "".join(f"{line}\n" for line in lines).encode())
    if not any(packed.rows.values()):
        raise DataError(f"no pair of `{options.source}` can be used; see {store.uri}/{REJECTED}")
    about = asdict(packed) | {"format": FORMAT, "status": "packed", "rejected": len(lines)}
    del about["shards_done_before"]
    store.write(ABOUT, json.dumps(about, indent=1).encode())
    for mark in marks:
        store.delete(mark)
    return packed


def plan_shards(options: PackOptions, listing: Listing, out: str) -> list[ShardPlan]:
    """The shards of both splits. Raises DataError where no picture can be used."""
    if not listing.items:
        reason = f": {listing.rejected[0].reason}" if listing.rejected else ""
        raise DataError(
            f"`{options.source}` as {listing.layout} holds no pair{reason}; --layout chooses another"
        )
    form = Form(_modes(options.source, listing.items), options.size_px, options.condition_side)
    splits: dict[str, list[PairFiles]] = {split: [] for split in SPLITS}
    for item in listing.items:
        splits[split_of(item.id, options.test_share)].append(item)
    return [
        ShardPlan(out, split, number, items, form)
        for split in SPLITS
        for number, items in enumerate(_shards(splits[split], options.rows_per_shard))
    ]


def split_of(name: str, test_share: float) -> str:
    """train or test, by the id alone: other pairs do not move it."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_share else "train"


def _shards(items: list[PairFiles], rows_per_shard: int) -> Iterator[list[PairFiles]]:
    shard: list[PairFiles] = []
    shard_bytes = 0
    for item in items:
        if shard and (len(shard) >= rows_per_shard or shard_bytes + item.bytes > SHARD_BYTES):
            yield shard
            shard, shard_bytes = [], 0
        shard.append(item)
        shard_bytes += item.bytes
    if shard:
        yield shard


def _modes(source: str, items: list[PairFiles]) -> tuple[str, str]:
    """The modes that most of some pairs, evenly spread, have."""
    probed = items[:: max(1, len(items) // PROBED)]
    counts = Counter(modes for item in probed if (modes := modes_of(item)) is not None)
    if not counts:  # all of a small sample may be bad
        counts = Counter(modes for item in items if (modes := modes_of(item)) is not None)
    if not counts:
        raise DataError(
            f"no pair of `{source}` can be used: give square grey or RGB PNG, JPEG or WebP files"
        )
    return max(sorted(counts), key=lambda modes: counts[modes])


def _require_own(store: Store) -> bool:
    """Was the folder packed, or begun, by this command? False: it is empty."""
    try:
        about = json.loads(store.read(ABOUT, limit_bytes=2**24))
        return bool(about["format"] == FORMAT)
    except BlobMissing:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{store.uri}/{ABOUT} is damaged; choose another --out") from error
    others = [
        key for split in SPLITS for key in store.keys(f"{split}/") if key.endswith(".parquet")
    ]
    if others:
        raise DataError(
            f"{store.uri} holds `{others[0]}`, which this command has not packed; choose another "
            "--out"
        )
    return False


def _done(store: Store, jobs: list[ShardPlan]) -> dict[str, ShardManifest]:
    """Manifests of planned shards that are there and as planned."""
    sizes = {entry.key: entry.bytes for split in SPLITS for entry in store.entries(f"{split}/")}
    there = set(store.keys("manifests/"))
    manifests: dict[str, ShardManifest] = {}
    for job in jobs:
        if job.manifest_key not in there:
            continue
        try:
            manifest = json.loads(store.read(job.manifest_key))
            whole = sizes.get(job.shard_key) == manifest["bytes"]
            if manifest["digest"] == job.digest and whole:
                manifests[job.manifest_key] = manifest
        except (ValueError, KeyError, TypeError):
            continue  # packed anew
    return manifests


def _forget_others(store: Store, jobs: list[ShardPlan]) -> None:
    """Remove shards of an earlier plan, each manifest first."""
    planned = {key for job in jobs for key in (job.manifest_key, job.shard_key)}
    keys = store.keys("manifests/") + [key for split in SPLITS for key in store.keys(f"{split}/")]
    for key in keys:
        if key not in planned and key.endswith((".json", ".parquet")) and UNFINISHED not in key:
            store.delete(key)


def _summed(listing: Listing, manifests: list[ShardManifest], done: int) -> PackReport:
    rows = dict.fromkeys(SPLITS, 0)
    labels: Counter[str] = Counter()
    rejected = list(listing.rejected)
    for manifest in sorted(manifests, key=lambda one: str(one["shard"])):
        rows[manifest["shard"].partition("/")[0]] += manifest["rows"]
        labels.update(manifest["labels"])
        rejected += [Rejected(**one) for one in manifest["rejected"]]
    return PackReport(
        listing.layout, rows, dict(sorted(labels.items())), sum(m["bytes"] for m in manifests),
        len(manifests), done, listing.passed_over, rejected,
    )  # fmt: skip


def _items(manifest: ShardManifest) -> int:
    return int(manifest["rows"]) + len(manifest["rejected"])


def _root(out: str, store: Store) -> str:
    return store.uri if out.startswith(S3) else out

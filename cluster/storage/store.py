"""Where runs live: a small store of named blobs, in a folder (folder.py) or in S3 (s3.py).

Keys are relative paths with `/`. A write is atomic: a reader sees the old blob or the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aalnet.errors import AalnetError, ConfigError, UserError


class StoreError(AalnetError):
    """The storage failed, for now: a full disk, a lost mount, a server that does not answer."""


class StoreUnavailable(StoreError, UserError):
    """The storage cannot be written or read as it is set up."""

    exit_code = 2


class BlobMissing(StoreError):
    """No blob of that key."""


class BlobTooLarge(StoreError):
    """The blob is larger than it may be."""


class BlobExists(StoreError):
    """Somebody else has created the blob before."""


@dataclass(frozen=True)
class Entry:
    """One blob as a listing shows it."""

    key: str
    bytes: int
    modified_s: float  # since the epoch


class Store(Protocol):
    """Named blobs below one URI. Every method raises StoreError where the storage fails."""

    uri: str
    appends: bool  # whether `append` can be called: a folder's can, an object store's cannot

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """The blob. Raises BlobMissing, BlobTooLarge."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the end of the blob. Raises BlobMissing."""

    def size(self, key: str) -> int:
        """Bytes of the blob. Raises BlobMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Put the blob, atomically, durable on return."""

    def create(self, key: str, data: bytes) -> None:
        """Put the blob if there is none: of two writers one wins.

        A blob of just these bytes counts as ours: a reply may be lost after the put succeeded.
        Raises BlobExists.
        """

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of a blob, made where it is missing; only where `appends`."""

    def entries(self, prefix: str = "") -> list[Entry]:
        """All blobs whose keys start with `prefix`, sorted by key."""

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below `prefix` (a folder key ending in `/`), sorted."""

    def delete(self, key: str) -> None:
        """Remove the blob; a missing one is fine."""

    def sweep(self, prefix: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        """Remove what writers that died left unfinished below `prefix`; names it."""


def checked_key(key: str) -> str:
    """The key itself. Raises ConfigError where it leads out of the storage."""
    if ".." in key.split("/"):
        raise ConfigError(f"`{key}` is not a key: `..` leads out of the storage")
    return key


def within(data: bytes, limit_bytes: int | None, key: str) -> bytes:
    """The data itself. Raises BlobTooLarge where it is larger than the limit."""
    if limit_bytes is not None and len(data) > limit_bytes:
        raise BlobTooLarge(f"`{key}` is larger than the {limit_bytes:,} bytes it may have")
    return data

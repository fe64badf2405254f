"""A store for the holder of a lease: it writes nothing once another process has taken over.

The driver holds the lease (cluster/storage/lease.py); its workers get the lease's number.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from cluster.storage.lease import HEARTBEAT_S, check, hold
from cluster.storage.store import Store


@dataclass(frozen=True)
class Fence:
    """Which lease must still be the newest."""

    folder: str
    number: int


class FencedStore:
    """A store that refuses to write once another process holds the lease.

    Asked before each conditional put (a checkpoint's manifest), else every few seconds at most.
    """

    def __init__(self, store: Store, fence: Fence) -> None:
        self.store, self.fence = store, fence
        self.uri, self.appends = store.uri, store.appends
        self.read, self.read_range, self.size = store.read, store.read_range, store.size
        self.entries, self.keys, self.folders = store.entries, store.keys, store.folders
        self._checked_at_s = time.monotonic()

    def _fence(self, *, now: bool = False) -> None:
        now_s = time.monotonic()  # an answer is as old as its question: a process may be
        if now or now_s - self._checked_at_s >= HEARTBEAT_S:  # suspended between the two
            check(self.store, self.fence.folder, self.fence.number)
            self._checked_at_s = now_s

    def write(self, key: str, data: bytes) -> None:
        """Asks every few seconds. Raises LeaseLost."""
        self._fence()
        self.store.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        """Asks every time: what is created, commits. Raises LeaseLost."""
        self._fence(now=True)
        self.store.create(key, data)

    def append(self, key: str, data: bytes) -> None:
        """Asks every few seconds. Raises LeaseLost."""
        self._fence()
        self.store.append(key, data)

    def delete(self, key: str) -> None:
        """Asks every few seconds. Raises LeaseLost."""
        self._fence()
        self.store.delete(key)

    def sweep(self, prefix: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        """Asks every few seconds. Raises LeaseLost."""
        self._fence()
        return self.store.sweep(prefix, older_than_s, dry_run=dry_run)


@contextlib.contextmanager
def leased(
    store: Store, folder: str, what: str, on_lost: Callable[[], None] = lambda: None
) -> Iterator[FencedStore]:
    """The store to write with while the lease in `folder` is held (cluster/storage/lease.py)."""
    with hold(store, folder, what, _tell, on_lost) as lease:
        yield FencedStore(store, Fence(folder, lease.number))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fence_of(store: Store) -> dict[str, str | int] | None:
    """The store's fence as plain data, for `fenced` in another process; None without one."""
    return asdict(store.fence) if isinstance(store, FencedStore) else None


def fenced(store: Store, fence: dict[str, str | int] | None) -> Store:
    """The store behind the fence that `fence_of` gave."""
    return store if fence is None else FencedStore(store, Fence(**fence))  # type: ignore[arg-type]

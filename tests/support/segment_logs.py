"""Logs of numbered lines, and a folder that appends nothing, as an object store."""

from __future__ import annotations

import sys

from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError


class Bucket(FolderStore):
    """A folder that appends nothing, as an object store. Takes so many writes, then no more."""

    appends = False
    writes = sys.maxsize

    def write(self, key: str, data: bytes) -> None:
        """As a folder does, and counted."""
        self._count()
        super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        """As a folder does, and counted."""
        self._count()
        super().create(key, data)

    def delete(self, key: str) -> None:
        """As a folder does, and counted."""
        self._count()
        super().delete(key)

    def _count(self) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise StoreError("it was killed")


def numbered(*numbers: int) -> bytes:
    """A line for each number."""
    return b"".join(b"%d\n" % number for number in numbers)

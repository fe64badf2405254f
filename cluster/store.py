"""Where runs live: a small store of named blobs. A folder now; object stores fit the same shape.

Keys are relative paths with `/`. A write is atomic: a reader sees the old blob or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol

from aalnet.errors import AalnetError, ConfigError, UserError

# A path that no second try will write to: no right, no such place, a file in the way.
UNUSABLE = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip


class StoreError(AalnetError):
    """The storage failed: a full disk, a lost mount."""


class StoreUnavailable(StoreError, UserError):
    """The storage cannot be written or read as it is set up."""

    exit_code = 2


class BlobMissing(StoreError):
    """No blob of that key."""


class Store(Protocol):
    """Named blobs below one URI."""

    uri: str

    def read(self, key: str) -> bytes:
        """The blob. Raises BlobMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Put the blob, atomically, durable on return."""

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of a blob (a log of lines); makes it where it is missing."""

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below `prefix` (a folder key ending in `/`), sorted."""

    def delete(self, key: str) -> None:
        """Remove the blob; a missing one is fine."""


class FolderStore:
    """A store in a local or shared folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise BlobMissing(f"`{key}` does not exist in {self.uri}") from None
        except OSError as error:
            raise StoreError(f"cannot read `{key}` in {self.uri}: {error}") from error

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise self._explain(error, key) from error

    def append(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise self._explain(error, key) from error

    def keys(self, prefix: str = "") -> list[str]:
        top = self._path(prefix) if prefix.endswith("/") else self.root
        found = (path for path in top.rglob("*") if path.is_file())
        names = (path.relative_to(self.root).as_posix() for path in found)
        return sorted(name for name in names if name.startswith(prefix) and "/." not in f"/{name}")

    def folders(self, prefix: str = "") -> list[str]:
        try:
            entries = list(self._path(prefix or "/").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"cannot list `{prefix}` in {self.uri}: {error}") from error
        return sorted(entry.name for entry in entries if entry.is_dir())

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise StoreError(f"cannot delete `{key}` in {self.uri}: {error}") from error
        with contextlib.suppress(OSError):  # the first folder that is not empty ends it
            for parent in path.relative_to(self.root).parents[:-1]:
                (self.root / parent).rmdir()

    def _path(self, key: str) -> Path:
        if ".." in key.split("/"):
            raise ConfigError(f"`{key}` is not a key: `..` leads out of the storage")
        return self.root / key.strip("/")

    def _explain(self, error: OSError, key: str) -> StoreError:
        if error.errno in UNUSABLE:
            return StoreUnavailable(
                f"storage {self.uri} cannot be written ({error.strerror}: `{key}`); "
                "choose another with --storage"
            )
        return StoreError(f"cannot write `{key}` in {self.uri}: {error.strerror or error}")


def open_store(uri: str) -> Store:
    """The store behind a URI.

    Raises:
        ConfigError: the scheme is not supported.
    """
    scheme = re.match(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://", uri)
    if scheme and scheme.group(1) != "file":
        raise ConfigError(f"storage `{uri}`: {scheme.group(1)}:// is not supported; give a folder")
    return FolderStore(uri.removeprefix("file://"))

"""A store in a local or shared folder."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.storage.store import (
    BlobExists,
    BlobMissing,
    Entry,
    StoreError,
    StoreUnavailable,
    checked_key,
    within,
)

# A path that no second try will write to: no right, no such place, a file in the way.
UNUSABLE = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip
PARTIAL = ".partial"  # ending of a file that is being written


class FolderStore:
    """A store in a local or shared folder."""

    appends = True

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """The file, read to its size and no further. Raises BlobMissing, BlobTooLarge."""
        with self._reading(key), self._path(key).open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # a limit may be huge: never allocate by it
            data = file.read(size + 1 if limit_bytes is None else min(size, limit_bytes) + 1)
        return within(data, limit_bytes, key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """A part of the file; b"" beyond its end. Raises BlobMissing."""
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, key: str) -> int:
        """Bytes of the file. Raises BlobMissing."""
        with self._reading(key):
            return self._path(key).stat().st_size

    def write(self, key: str, data: bytes) -> None:
        """A synced temporary file that takes the name: an atomic rename."""
        path = self._path(key)
        with self._written(key, path, data) as temporary:
            os.replace(temporary, path)

    def create(self, key: str, data: bytes) -> None:
        """A synced temporary file that a hard link names, which only one can. Raises BlobExists."""
        path = self._path(key)
        with self._written(key, path, data) as temporary:
            while not _linked(temporary, path):
                try:
                    same = path.read_bytes() == data
                except FileNotFoundError:
                    if path.is_symlink():  # it leads nowhere, and keeps the name
                        raise
                    continue  # deleted just now: the name is free
                if not same:
                    raise BlobExists(f"`{key}` exists in {self.uri} already")
                return

    def append(self, key: str, data: bytes) -> None:
        """To the file itself, not synced: a crash may leave a part of the data."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise self._explain(error, key) from error

    def entries(self, prefix: str = "") -> list[Entry]:
        """All files below, links to files too; names that start with a dot are none."""
        entries = []
        for key, file in self._blobs(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                facts = file.stat()
                entries.append(Entry(key, facts.st_size, facts.st_mtime))
        return sorted(entries, key=lambda entry: entry.key)

    def keys(self, prefix: str = "") -> list[str]:
        """Without a look at each: of a blob and the one in its place, one is always listed."""
        return sorted(key for key, _ in self._blobs(prefix))

    def folders(self, prefix: str = "") -> list[str]:
        """Folders right below; none where the prefix is no folder."""
        try:
            entries = list(self._path(prefix or "/").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"cannot list `{prefix}` in {self.uri}: {error}") from error
        return sorted(entry.name for entry in entries if entry.is_dir())

    def delete(self, key: str) -> None:
        """Remove the file, and its folders as far as they are empty."""
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

    def sweep(self, prefix: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        """Remove temporary files of writers that died; names them."""
        before_s = time.time() - older_than_s
        removed = []
        for file in self._files(prefix):
            with contextlib.suppress(FileNotFoundError):
                unfinished = file.name.startswith(".") and file.name.endswith(PARTIAL)
                if unfinished and file.stat().st_mtime <= before_s:
                    if not dry_run:
                        os.unlink(file)
                    removed.append(self._key(file))
        return sorted(removed)

    def _blobs(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for file in self._files(prefix if prefix.endswith("/") else ""):
            key = self._key(file)
            if key.startswith(prefix) and "/." not in f"/{key}":
                yield key, file

    def _files(self, prefix: str) -> Iterator[os.DirEntry[str]]:
        """All files below. A folder that cannot be listed, or is deleted meanwhile, has none."""
        folders = [os.fspath(self._path(prefix))]
        while folders:
            listed: list[os.DirEntry[str]] = []
            with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
                listed = list(entries)
            folders += [entry.path for entry in listed if entry.is_dir(follow_symlinks=False)]
            for entry in listed:
                if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):
                    yield entry

    def _key(self, file: os.DirEntry[str]) -> str:
        return Path(file.path).relative_to(self.root).as_posix()

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise BlobMissing(f"`{key}` does not exist in {self.uri}") from None
        except OSError as error:
            raise StoreError(f"cannot read `{key}` in {self.uri}: {error}") from error

    @contextlib.contextmanager
    def _written(self, key: str, path: Path, data: bytes) -> Iterator[str]:
        """A temporary file beside `path` that holds the data; gone afterwards."""
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            yield temporary
        except OSError as error:
            raise self._explain(error, key) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key).strip("/")

    def _explain(self, error: OSError, key: str) -> StoreError:
        if error.errno in UNUSABLE:
            return StoreUnavailable(
                f"storage {self.uri} cannot be written ({error.strerror}: `{key}`); "
                "choose another with --storage"
            )
        return StoreError(f"cannot write `{key}` in {self.uri}: {error.strerror or error}")


def _linked(temporary: str, path: Path) -> bool:
    """Give a file its name too; not where the name is taken, unlike a rename."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    return True

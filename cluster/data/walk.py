"""The files below a folder or an S3 prefix, whatever links, pipes and names lie among them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from aalnet.errors import DataError
from cluster.data.shards import S3
from cluster.storage.location import open_store

PICTURE = re.compile(r"\.(?:png|jpe?g|webp)$", re.IGNORECASE)


@dataclass(frozen=True)
class File:
    """A file, which may be missing where a list names it."""

    name: str  # below the source, with `/`
    uri: str  # absolute path or s3:// URI
    bytes: int
    stamp: str  # changes when the file does, where it is known


class Walk:
    """One walk through a source; the folder `out` is not entered."""

    def __init__(self, source: str, out: str) -> None:
        self.source, self.out = source, out
        self.count = 0  # files, hidden ones too, without rejected ones
        self.rejected: list[tuple[str, str]] = []  # path, reason

    def files(self) -> Iterator[File]:
        """Regular files that are not hidden. Raises DataError where there is no such folder."""
        return self._in_s3() if self.source.startswith(S3) else self._on_disk()

    def _in_s3(self) -> Iterator[File]:
        store = open_store(self.source)
        for entry in store.entries():
            uri = f"{store.uri}/{entry.key}"
            if uri.startswith(f"{self.out}/"):
                continue
            self.count += 1
            if not any(part.startswith(".") for part in entry.key.split("/")):
                yield File(entry.key, uri, entry.bytes, repr(entry.modified_s))

    def _on_disk(self) -> Iterator[File]:
        root = os.path.abspath(os.path.expanduser(self.source))
        if not os.path.isdir(root):
            what = "is a file" if os.path.exists(root) else "does not exist"
            raise DataError(f"`{self.source}` {what}; name a folder of pictures, or a list of them")
        out = "" if self.out.startswith(S3) else os.path.realpath(os.path.expanduser(self.out))
        entered: set[tuple[int, int]] = set()
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            for entry in self._entries(folder, entered):
                about = _stat(entry.path)
                if about is not None and stat.S_ISDIR(about.st_mode):
                    if not entry.name.startswith(".") and os.path.realpath(entry.path) != out:
                        waiting.append(entry.path)
                    continue
                hidden = entry.name.startswith(".")
                regular = about is not None and stat.S_ISREG(about.st_mode)
                if PICTURE.search(entry.name) and not hidden and not regular:
                    self._reject(entry.path, "is no regular file, or a link to nothing")
                    continue
                self.count += 1
                if about is not None and regular and not hidden:
                    name = os.path.relpath(entry.path, root).replace(os.sep, "/")
                    yield File(name, entry.path, about.st_size, str(about.st_mtime_ns))

    def _entries(self, folder: str, entered: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
        """What lies in a folder. Links are followed, but a folder is entered once."""
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in entered:
                self._reject(folder, "is linked twice or into itself; it is entered once")
                return []
            entered.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as scan:
                return sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            self._reject(folder, f"cannot be entered: {error.strerror}")
            return []

    def _reject(self, path: str, reason: str) -> None:
        self.rejected.append((path, reason))


def file_at(folder: str, path: str) -> File:
    """A file named by a list: absolute, or below the list's folder. It may be missing."""
    if path.startswith(S3):
        return File(path, path, 0, "")
    if folder.startswith(S3) and not path.startswith("/"):
        return File(path, f"{folder}/{path}", 0, "")
    whole = os.path.abspath(os.path.join(folder, path))
    about = _stat(whole)
    return (
        File(path, whole, about.st_size, str(about.st_mtime_ns))
        if about
        else File(path, whole, 0, "")
    )


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None

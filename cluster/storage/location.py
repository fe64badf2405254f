"""The one way from a URI to its store."""

from __future__ import annotations

import re

from aalnet.errors import ConfigError
from cluster.storage.folder import FolderStore
from cluster.storage.store import Store


def open_store(uri: str) -> Store:
    """The store behind a folder or `s3://bucket/prefix`.

    Raises:
        ConfigError: the scheme is not supported, or there is no bucket in it.
    """
    scheme = re.match(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://", uri)
    if scheme is None or scheme.group(1) == "file":
        return FolderStore(uri.removeprefix("file://"))
    if scheme.group(1) == "s3":
        from cluster.storage.s3 import S3Store  # boto3 takes a while: folders go without it

        return S3Store(uri)
    raise ConfigError(
        f"storage `{uri}`: {scheme.group(1)}:// is not supported; give a folder or s3://bucket/prefix"
    )

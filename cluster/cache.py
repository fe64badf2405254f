"""The folder on this machine where the project keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`AALNET_CACHE`, else `aalnet` in the user's cache folder."""
    own = os.environ.get("AALNET_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own if own else f"{usual}/aalnet").expanduser().absolute()

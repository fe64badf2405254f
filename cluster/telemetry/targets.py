"""Where Prometheus finds what runs on this machine: one file_sd file per process that is scraped.

They lie in `targets` of the cache folder. A file goes when its process ends; those of processes
that were killed go when the next one writes its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.cache import cache_folder

INSTANCE = "instance"  # a label, and the query's parameter with which Prometheus asks for it
EVERYWHERE = {"", "0.0.0.0", "::"}


@dataclass(frozen=True)
class Target:
    """What is scraped at an address: `instance` is `run/NAME`, `campaign/NAME`, `endpoint/...`."""

    instance: str
    host: str
    port: int
    pid: int

    @property
    def address(self) -> str:
        """`host:port` as seen from this machine."""
        host = "127.0.0.1" if self.host in EVERYWHERE else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def targets_folder() -> Path:
    """The folder that Prometheus watches."""
    return cache_folder() / "targets"


@contextlib.contextmanager
def announced(target: Target, warn: Callable[[str], None]) -> Iterator[None]:
    """Have Prometheus find a target while the block runs; where that fails, `warn` says so."""
    path = None
    try:
        path = _announce(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home folder is known
        warn(f"Prometheus will not find the metrics at {target.address} by itself: {error}")
    try:
        yield
    finally:
        if path is not None:
            with contextlib.suppress(OSError):  # removed later
                path.unlink(missing_ok=True)


def _announce(target: Target) -> Path:
    """Write a target's file, and remove those of processes that are gone."""
    folder = targets_folder()
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale()
    stem = re.sub(r"[^\w.-]", "-", target.instance)
    path = folder / f"{stem}-{target.pid}.json"
    # A label that begins with `__` goes no further than Prometheus' own relabelling.
    name = target.instance
    labels = {INSTANCE: name, f"__param_{INSTANCE}": name, "__pid": str(target.pid)}
    entry = {"targets": [target.address], "labels": labels}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([entry]), encoding="utf-8")
    unfinished.replace(path)
    return path


def remove_stale() -> None:
    """Remove the files of processes that are gone; what cannot be read is none of ours."""
    for path in targets_folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            (entry,) = json.loads(path.read_text(encoding="utf-8"))
            if not _alive(int(entry["labels"]["__pid"])):
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

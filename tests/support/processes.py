"""Processes that a test started: found by a mark or by their ancestry, and killed by their id."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MARK = "AALNET_TEST_MARK"  # in the environment of all that belong together
TRAIN_WORKER = "ray::RayTrainWorker"


def marked(mark: str) -> list[int]:
    """Living processes that bear the mark in their environment, and all below them.

    Ray's workers overwrite their environment with their title, so ancestry must find them.
    """
    text = f"{MARK}={mark}".encode()
    bearers = [pid for pid in _pids() if text in _read(pid, "environ").split(b"\0")]
    return sorted({*bearers, *descendants(*bearers)})


def descendants(*pids: int) -> list[int]:
    """All living processes below some, as they are now."""
    children: dict[int, list[int]] = {}
    for child in _pids():
        state, parent, *_ = _read(child, "stat").rpartition(b") ")[2].split() or (b"Z", b"0")
        if state != b"Z":
            children.setdefault(int(parent), []).append(child)
    below, waiting = list[int](), list(pids)
    while waiting:
        nearest = children.get(waiting.pop(), [])
        below += nearest
        waiting += nearest
    return below


def title(pid: int) -> str:
    """What a process calls itself; empty where there is none."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode()


def workers_of(driver_pid: int) -> list[int]:
    """The process ids of the Ray Train workers of a driver that started its own Ray."""
    return [pid for pid in descendants(driver_pid) if title(pid).startswith(TRAIN_WORKER)]


def kill(pids: Iterable[int]) -> None:
    """SIGKILL each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_marked(mark: str) -> None:
    """SIGKILL, until nothing bears the mark: something may just be starting another."""
    while pids := marked(mark):
        kill(pids)
        time.sleep(0.1)


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), name).read_bytes()
    return b""

"""A lease of a run, another machine's hold of it, and beats quick enough for a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.storage import fenced, lease
from cluster.storage.lease import Holder, key_of
from cluster.storage.store import Store

FOLDER = "runs/r/lease"
ELSEWHERE = replace(Holder.myself(), machine="another", host="far-away")


def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heart that beats every 0.1 s, and is taken for dead after 0.8 s."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "TTL_S", 0.8)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(fenced, "HEARTBEAT_S", 0.1)


def put(store: Store, holder: Holder, number: int = 1) -> None:
    """Store the lease `number` as `holder` would, whoever holds it now."""
    store.write(key_of(FOLDER, number), holder.bytes())


def silent(_: str) -> None:
    """Say nothing of a lease taken over."""

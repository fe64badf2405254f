"""Calls of the endpoint's application without a socket, one service for each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cluster.storage.folder import FolderStore
from deploy.endpoint.settings import EndpointSettings
from tests.support.endpoint_models import (
    QUICK,
    client_of,
    make_checkpoint,
    remembered_graph,
    service_of,
)

SETTINGS = EndpointSettings(
    batch_samples=8, max_samples=16, body_bytes=200_000, image_side_px=512, body_timeout_s=0.3
)


def tiny_store(folder: Path) -> FolderStore:
    """A store with one run, `tiny`."""
    store = FolderStore(folder)
    make_checkpoint(store, "tiny")
    return store


@contextlib.contextmanager
def quick_exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each model is exported once for all tests, and none leaves torch another thread."""
    monkeypatch.setattr("deploy.endpoint.model.build_graph", remembered_graph)
    yield
    assert int(os.environ["OMP_NUM_THREADS"]) == torch.get_num_threads() == QUICK.threads


def ask(store: FolderStore, *requests: dict[str, Any], settings: EndpointSettings = SETTINGS,
        path: str = "/v1/samples", **service: Any) -> list[httpx.Response]:  # fmt: skip
    """The answers to POST requests, one after the other."""

    async def answers() -> list[httpx.Response]:
        async with client_of(service_of(store, settings=settings, **service)) as (client, _):
            return [await client.post(path, **request) for request in requests]

    return asyncio.run(answers())


def get(store: FolderStore, *paths: str, **service: Any) -> list[httpx.Response]:
    """The answers to GET requests, one after the other."""

    async def answers() -> list[httpx.Response]:
        async with client_of(service_of(store, settings=SETTINGS, **service)) as (client, _):
            return [await client.get(path) for path in paths]

    return asyncio.run(answers())

"""Who may call the endpoint: keys, the paths that need none, keys read again, rates."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.storage.folder import FolderStore
from deploy.endpoint.settings import EndpointSettings
from tests.support.endpoint_calls import SETTINGS, ask, get, quick_exports, tiny_store
from tests.support.endpoint_models import client_of, form, service_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with quick_exports(monkeypatch):
        yield


KEY, OTHER_KEY = "a-long-enough-key-1", "a-long-enough-key-2"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    lines = (
        f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
        for name, key in (("web", KEY), ("batch", OTHER_KEY))
    )
    path.write_text("# who may call\n\n" + "\n".join(lines) + "\n")
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("wrong"), 401),
        ({"authorization": KEY}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        (bearer(KEY), 200),
        (bearer(OTHER_KEY), 200),
    ],
)
def test_keys(store: FolderStore, keys: Path, headers: dict[str, str], status: int) -> None:
    (answer,) = ask(store, {**form(), "headers": headers}, keys=keys)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


def test_without_a_key_the_body_is_not_read(store: FolderStore, keys: Path) -> None:
    read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b""

    (answer,) = ask(store, {"content": body()}, keys=keys)
    assert answer.status_code == 401
    assert not read


def test_open_paths_need_no_key(store: FolderStore, keys: Path) -> None:
    paths = ("/healthz", "/readyz", "/metrics", "/", "/docs")
    assert {answer.status_code for answer in get(store, *paths, keys=keys)} == {200}
    assert get(store, "/v1/model", keys=keys)[0].status_code == 401


def test_keys_are_read_again_and_a_bad_file_changes_nothing(
    store: FolderStore,
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("deploy.endpoint.security.LOOK_EVERY_S", 0.0)
    new_key = "a-long-enough-key-3"

    async def statuses() -> list[int]:
        found = []
        async with client_of(service_of(store, settings=SETTINGS, keys=keys)) as (client, _):

            async def model(key: str) -> None:
                found.append((await client.get("/v1/model", headers=bearer(key))).status_code)

            await model(new_key)
            keys.write_text(f"new:{hashlib.sha256(new_key.encode()).hexdigest()}\n")
            await model(new_key)
            await model(KEY)
            keys.write_text(f"{new_key} in plain words\n")
            await model(new_key)
        return found

    with caplog.at_level(logging.INFO):
        assert asyncio.run(statuses()) == [401, 200, 401, 200]
    assert "stay as they were" in caplog.text
    assert new_key not in caplog.text


def test_a_key_that_calls_too_often_waits(store: FolderStore, keys: Path) -> None:
    settings = EndpointSettings(batch_samples=8, rate_per_s=0.5, rate_burst=2)
    mine, other = {"headers": bearer(KEY)}, {"headers": bearer(OTHER_KEY)}
    requests = [{**form(), **mine}] * 3 + [{**form(), **other}]
    answers = ask(store, *requests, keys=keys, settings=settings)
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert answers[2].headers["retry-after"] == "2"

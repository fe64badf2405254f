"""What the endpoint refuses, how little it says of it, and that a retry gets the first answer."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from PIL import Image

from cluster.storage.folder import FolderStore
from tests.support.endpoint_calls import SETTINGS, ask, quick_exports, tiny_store
from tests.support.endpoint_models import form, png_of
from tests.support.tiny_runs import encoded


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with quick_exports(monkeypatch):
        yield


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (form(b""), 422, "image"),
        (form(b"GIF89a" + bytes(50)), 422, "image"),
        (form(png_of()[:60]), 422, "image"),
        (form(encoded(Image.new("L", (513, 1)))), 422, "image"),
        (form(label="nobody"), 422, "label"),
        (form(label=""), 422, "field"),
        (form(label=None), 422, "field"),
        (form(num_samples=0), 422, "field"),
        (form(num_samples=17), 422, "field"),
        (form(num_samples="two"), 422, "field"),
        (form(seed=-1), 422, "field"),
        (form(seed=2**53), 422, "field"),
        (form(temperature=0), 422, "field"),
        (form(temperature=4.1), 422, "field"),
        (form(temperature="warm"), 422, "field"),
        (form(temperature="9" * 400), 422, "field"),
        (form(format="bmp"), 422, "field"),
        (form(colour="red"), 422, "field"),
        ({"data": {"label": "a"}}, 415, "type"),
        ({"json": [1]}, 422, "body"),
        ({"json": {"image": "%%%", "label": "a"}}, 422, "field"),
        ({"json": {"image": "", "label": "a", "num_samples": "2"}}, 422, "field"),
        ({"content": b"{" * 9000, "headers": {"content-type": "application/json"}}, 422, "body"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "body"),
        ({"content": bytes(200_001), "headers": {"content-type": "image/png"}}, 413, "size"),
        ({**form(), "headers": {"idempotency-key": "a b"}}, 422, "id"),
    ],
)
def test_refusals_are_short_and_plain(
    store: FolderStore, request_: dict[str, Any], status: int, reason: str
) -> None:
    (answer,) = ask(store, request_)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert len(answer.json()["message"]) < 150
    for secret in ("Traceback", ".py", "0x", str(store.root)):
        assert secret not in answer.text


def test_a_field_given_twice_is_refused(store: FolderStore) -> None:
    twice = [("label", (None, b"a")), ("label", (None, b"b")), ("image", ("i", png_of()))]
    (answer,) = ask(store, {"files": twice})
    assert answer.json()["reason"] == "field"


def test_a_body_is_measured_while_it_streams(store: FolderStore) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 50_000
            yield bytes(50_000)

    (answer,) = ask(store, {"content": endless()})
    assert answer.status_code == 413
    assert read <= 2 * SETTINGS.body_bytes + 100_000


def test_a_slow_body_is_given_up(store: FolderStore) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x"
            await asyncio.sleep(0.05)

    (answer,) = ask(store, {"content": slow()})
    assert (answer.status_code, answer.json()["reason"]) == (408, "slow")


def test_an_internal_error_shows_nothing_but_the_log_does(
    store: FolderStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("deploy.endpoint.service.decode_condition", fail)
    (answer,) = ask(store, form())
    assert (answer.status_code, answer.json()["reason"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "a secret path" in caplog.text


# Ids


def test_a_retry_gets_the_first_answer(store: FolderStore) -> None:
    image = png_of(5)
    body = {"json": {"image": base64.b64encode(image).decode(), "label": "a"}}
    first, again, different = ask(
        store,
        {**body, "headers": {"idempotency-key": "one"}},
        {**body, "headers": {"idempotency-key": "one"}},
        {**body, "headers": {"idempotency-key": "two"}},
    )
    assert first.content == again.content
    assert first.headers["x-seed"] == again.headers["x-seed"] != different.headers["x-seed"]
    one = {"headers": {"idempotency-key": "one"}}
    conflict = ask(store, {**body, **one}, {**form(), **one})[1]
    assert (conflict.status_code, conflict.json()["reason"]) == (409, "id")

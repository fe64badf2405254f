"""The endpoint's answers, limits and refusals, called without a socket."""

import asyncio
import base64
import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from aalnet.sampling import draw, from_uint8, noise_for, to_uint8
from cluster.data.pictures import decode_image
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.folder import FolderStore
from deploy.endpoint.settings import EndpointSettings
from tests.support.endpoint_models import (
    LABELS,
    QUICK,
    client_of,
    form,
    make_checkpoint,
    pictures,
    png_of,
    remembered_graph,
    service_of,
)
from tests.support.tiny_runs import encoded, noise_picture

SETTINGS = EndpointSettings(
    batch_samples=8, max_samples=16, body_bytes=200_000, image_side_px=512, body_timeout_s=0.3
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    make_checkpoint(store, "tiny")
    return store


@pytest.fixture(autouse=True)
def one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.model.build_graph", remembered_graph)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def ask(store: FolderStore, *requests: dict[str, Any], settings: EndpointSettings = SETTINGS,
        path: str = "/v1/samples", **service: Any) -> list[httpx.Response]:  # fmt: skip
    """The answers to POST requests, one after the other."""

    async def answers() -> list[httpx.Response]:
        async with client_of(service_of(store, settings=settings, **service)) as (client, _):
            return [await client.post(path, **request) for request in requests]

    return list(run(answers()))


def get(store: FolderStore, *paths: str, **service: Any) -> list[httpx.Response]:
    async def answers() -> list[httpx.Response]:
        async with client_of(service_of(store, settings=SETTINGS, **service)) as (client, _):
            return [await client.get(path) for path in paths]

    return list(run(answers()))


# Answers


def test_json_answer_holds_what_aalnet_sample_draws(store: FolderStore) -> None:
    (answer,) = ask(store, form(num_samples=3, seed=7, format="json", label="b"))
    assert answer.status_code == 200
    facts = answer.json()
    assert facts["execution"] == answer.headers["x-aalnet-execution"]
    assert (facts["model"], facts["label"], facts["seed"], facts["num_samples"]) == (
        "tiny", "b", 7, 3,
    )  # fmt: skip
    generator, settings = load_generator(find_checkpoint(store, "tiny"), torch.device("cpu"))
    pixels, _ = decode_image(png_of(), "image", 32)
    noise = noise_for(7, 0, 1, 3, settings.network.noise_size)
    condition = from_uint8(pixels)[None]
    expected = to_uint8(draw(generator, condition, torch.tensor([1]), noise)[0])
    drawn = np.stack([np.array(picture) for picture in pictures(answer)])
    assert np.abs(drawn.astype(int) - expected.astype(int)).max() <= 1  # batches round otherwise
    assert len({picture.tobytes() for picture in pictures(answer)}) == 3


def test_headers_name_model_checkpoint_seed_and_timing(store: FolderStore) -> None:
    (answer,) = ask(store, form(seed=5))
    digest = find_checkpoint(store, "tiny").manifest().digest
    headers = answer.headers
    assert (headers["x-model"], headers["x-checkpoint"], headers["x-seed"]) == ("tiny", digest, "5")
    assert headers["x-aalnet-execution"].startswith("onnxruntime-")
    assert "model;dur=" in headers["server-timing"]
    assert "x-resized" not in headers
    assert headers["x-content-type-options"] == "nosniff"


def test_png_is_a_grid_of_the_same_samples(store: FolderStore) -> None:
    grid, samples = ask(store, form(num_samples=5), form(num_samples=5, format="json"))
    picture = Image.open(io.BytesIO(grid.content))
    assert picture.size == (3 * 32, 2 * 32)
    for i, sample in enumerate(pictures(samples)):
        x, y = 32 * (i % 3), 32 * (i // 3)
        assert picture.crop((x, y, x + 32, y + 32)).tobytes() == sample.tobytes()


def test_zip_holds_every_sample_and_the_facts(store: FolderStore) -> None:
    archive, samples = ask(store, form(format="zip"), form(format="json"))
    with zipfile.ZipFile(io.BytesIO(archive.content)) as found:
        assert found.namelist() == ["sample-0.png", "sample-1.png", "facts.json"]
        assert json.loads(found.read("facts.json"))["seed"] == 1
        assert found.read("sample-1.png") == base64.b64decode(samples.json()["samples"][1])


def test_json_request_is_the_same_as_multipart(store: FolderStore) -> None:
    body = {"image": base64.b64encode(png_of()).decode(), "label": "a", "num_samples": 2, "seed": 1}
    by_form, by_json = ask(store, form(), {"json": body})
    assert by_form.content == by_json.content


def test_without_a_seed_pictures_differ_and_the_seed_is_told(store: FolderStore) -> None:
    first, second = ask(store, form(seed=None), form(seed=None))
    assert first.content != second.content
    (again,) = ask(store, form(seed=first.headers["x-seed"]))
    assert again.content == first.content


@pytest.mark.parametrize("size", [(64, 64), (20, 45)])
def test_another_size_is_brought_into_form_and_said(
    store: FolderStore, size: tuple[int, int]
) -> None:
    image = encoded(Image.new("RGB", size, "red"))
    (answer,) = ask(store, form(image, format="json"))
    assert answer.headers["x-resized"] == f"{size[0]}x{size[1]} to 32x32"
    assert answer.json()["resized_from"] == list(size)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_formats_and_modes(store: FolderStore, kind: str, mode: str) -> None:
    image = Image.fromarray(noise_picture(0)).convert(mode)
    if kind == "JPEG" and mode in ("RGBA", "P", "LA"):
        pytest.skip("JPEG has no such mode")
    (answer,) = ask(store, form(encoded(image, kind)))
    assert answer.status_code == 200, answer.text


def test_model_facts(store: FolderStore) -> None:
    (answer,) = get(store, "/v1/model")
    facts = answer.json()
    assert facts["labels"] == list(LABELS)
    assert (facts["size_px"], facts["max_samples"]) == (32, 16)
    assert facts["figures"] == {"kid_lite0": 0.5}
    assert facts["settings"]["network"]["noise_size"] == 4


def test_pages_load_nothing_from_elsewhere(store: FolderStore) -> None:
    paths = ("/", "/docs", "/page/app.js", "/page/docs.js", "/page/style.css", "/openapi.json")
    for answer in get(store, *paths):
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_metrics_count_what_happened(store: FolderStore) -> None:
    async def text() -> str:
        async with client_of(service_of(store, settings=SETTINGS)) as (client, _):
            await client.post("/v1/samples", **form(num_samples=3))
            await client.post("/v1/samples", **form(label="unknown"))
            await client.get("/no/such/path")
            return (await client.get("/metrics")).text

    lines = run(text()).splitlines()
    assert 'aalnet_endpoint_requests_total{code="200",route="/v1/samples"} 1.0' in lines
    assert 'aalnet_endpoint_requests_total{code="422",route="/v1/samples"} 1.0' in lines
    assert 'aalnet_endpoint_requests_total{code="404",route="other"} 1.0' in lines
    assert 'aalnet_endpoint_rejected_total{reason="label"} 1.0' in lines
    assert "aalnet_endpoint_samples_total 3.0" in lines
    assert "aalnet_endpoint_queued_samples 0.0" in lines
    assert 'aalnet_endpoint_seconds_count{part="total"} 1.0' in lines


# Refusals


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


# Keys


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
        assert run(statuses()) == [401, 200, 401, 200]
    assert "stay as they were" in caplog.text
    assert new_key not in caplog.text


def test_a_key_that_calls_too_often_waits(store: FolderStore, keys: Path) -> None:
    settings = EndpointSettings(batch_samples=8, rate_per_s=0.5, rate_burst=2)
    mine, other = {"headers": bearer(KEY)}, {"headers": bearer(OTHER_KEY)}
    requests = [{**form(), **mine}] * 3 + [{**form(), **other}]
    answers = ask(store, *requests, keys=keys, settings=settings)
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert answers[2].headers["retry-after"] == "2"


# Readiness


def test_not_ready_when_closed(store: FolderStore) -> None:
    async def statuses() -> tuple[int, int, int]:
        service = service_of(store)
        async with client_of(service) as (client, application):
            before = (await client.get("/readyz")).status_code
            service.ready = False
            application.gate.closing = True
            after = await client.get("/readyz")
            assert after.headers["connection"] == "close"
            sampled = await client.post("/v1/samples", **form())
            return before, after.status_code, sampled.status_code

    assert run(statuses()) == (200, 503, 200)


@pytest.fixture(autouse=True)
def no_torch_threads_left() -> Iterator[None]:
    yield
    assert int(os.environ["OMP_NUM_THREADS"]) == torch.get_num_threads() == QUICK.threads

"""The endpoint's answers, called without a socket: samples, facts, pages, metrics, readiness."""

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from aalnet.sampling import draw, from_uint8, noise_for, to_uint8
from cluster.data.pictures import decode_image
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.folder import FolderStore
from tests.support.endpoint_calls import SETTINGS, ask, get, quick_exports, tiny_store
from tests.support.endpoint_models import LABELS, client_of, form, pictures, png_of, service_of
from tests.support.tiny_runs import encoded, noise_picture


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with quick_exports(monkeypatch):
        yield


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
    assert facts["figures"] == {"kid_unpaired_lite0": 0.5}
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

    lines = asyncio.run(text()).splitlines()
    assert 'aalnet_endpoint_requests_total{code="200",route="/v1/samples"} 1.0' in lines
    assert 'aalnet_endpoint_requests_total{code="422",route="/v1/samples"} 1.0' in lines
    assert 'aalnet_endpoint_requests_total{code="404",route="other"} 1.0' in lines
    assert 'aalnet_endpoint_rejected_total{reason="label"} 1.0' in lines
    assert "aalnet_endpoint_samples_total 3.0" in lines
    assert "aalnet_endpoint_queued_samples 0.0" in lines
    assert 'aalnet_endpoint_seconds_count{part="total"} 1.0' in lines


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

    assert asyncio.run(statuses()) == (200, 503, 200)

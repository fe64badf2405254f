"""`aalnet serve` follows promotions under load, from a folder and from S3, and outlives that S3."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.runs.checkpoint import Checkpoint
from cluster.runs.promotions import promote
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import Store
from tests.support.endpoint_models import (
    corrupt,
    folder_to_serve,
    form,
    in_background,
    make_checkpoint,
    make_nan,
    served,
    until,
)
from tests.support.repeats import LONG, repeats
from tests.support.s3_server import environment, s3_server

SWAPPED = 'aalnet_endpoint_swaps_total{outcome="swapped"}'
REFUSED = 'aalnet_endpoint_swaps_total{outcome="refused"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_to_serve(tmp_path_factory.mktemp("serve"))


@pytest.fixture(params=["folder", "s3"] if LONG else ["folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "store")
        return
    with s3_server(tmp_path / "s3") as server, environment(server.environment):
        yield open_store(f"s3://{server.bucket}/prefix")


@pytest.mark.timeout(300)
def test_promotions_under_load(folder: Path, store: Store) -> None:
    count = repeats(6, 20)  # even: the first checkpoint is the last one
    good = [make_checkpoint(store, f"run-{i}", i, seed=i) for i in range(2)]
    broken = make_checkpoint(store, "corrupted", 7, seed=7)
    promote(store, good[0], "m")
    expected: dict[str, set[bytes]] = {found.manifest().digest: set() for found in good}
    failures: list[int] = []
    with served(
        "--model", "m", "--storage", store.uri, "--set", "poll_s=0.1", cwd=folder
    ) as endpoint:

        def ask(stop: threading.Event) -> None:
            with httpx.Client(base_url=endpoint.url, timeout=30) as client:
                for number in itertools.count():
                    if stop.is_set():
                        return
                    answer = client.post("/v1/samples", **form(num_samples=1 + number % 3))
                    if answer.status_code != 200:
                        failures.append(answer.status_code)
                    elif number % 3 == 0:
                        expected[answer.headers["x-checkpoint"]].add(answer.content)

        with in_background(ask), in_background(ask), in_background(ask):
            for i in range(1, count + 1):
                promote(store, good[i % 2], "m")
                until(lambda i=i: endpoint.metric(SWAPPED) == i)
            promote(store, make_checkpoint(store, "nan", 9, change=make_nan), "m")
            until(lambda: endpoint.metric(REFUSED) == 1)
            name = promotion_file(store, broken)
            corrupt(broken)
            store.write("models/m.json", name)
            until(lambda: endpoint.metric(REFUSED) == 2)
            time.sleep(0.5)
        facts = httpx.get(f"{endpoint.url}/v1/model").json()
        log = endpoint.log.read_text()
    assert failures == []
    assert log.count("promotion of `m` refused") == 2
    # Whatever was drawn beside it, one checkpoint gave one answer: no batch held two models.
    assert [len(answers) for answers in expected.values()] == [1, 1]
    assert len(set.union(*expected.values())) == 2
    assert facts["checkpoint"] == good[0].manifest().digest


def test_a_model_in_s3_is_followed_and_outlives_its_server(folder: Path, tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as server, environment(server.environment):
        store = open_store(f"s3://{server.bucket}/prefix")
        good = [make_checkpoint(store, f"run-{i}", i, seed=i) for i in range(2)]
        first, second = (found.manifest().digest for found in good)
        promote(store, good[0], "m")
        asked = ("--model", "m", "--storage", store.uri, "--set", "poll_s=0.1")
        with served(*asked, cwd=folder) as endpoint, httpx.Client(base_url=endpoint.url) as client:
            before = client.post("/v1/samples", **form())
            assert before.headers["x-checkpoint"] == first
            promote(store, good[1], "m")
            until(lambda: endpoint.metric(SWAPPED) == 1)
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(1)
            after = [client.post("/v1/samples", **form(seed=seed)) for seed in range(5)]
            ready = client.get("/readyz").status_code
    assert [answer.status_code for answer in after] == [200] * 5
    assert {answer.headers["x-checkpoint"] for answer in after} == {second}
    assert ready == 200
    assert "Traceback" not in endpoint.log.read_text()


def promotion_file(store: Store, found: Checkpoint) -> bytes:
    """What `promote` writes for a checkpoint that was whole when it was promoted."""
    promote(store, found, "other")
    return store.read("models/other.json").replace(b'"other"', b'"m"')

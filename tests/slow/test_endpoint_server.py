"""`aalnet serve` as a process: its start, its end, its load, its enemies."""

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.endpoint_models import (
    Served,
    folder_to_serve,
    form,
    in_background,
    png_of,
    served,
    until,
)
from tests.support.hostile_images import send
from tests.support.load import request_bytes, slow_clients
from tests.support.repeats import repeats
from tests.support.tiny_runs import ROOT, aalnet, command_environment

KEY = "a-long-enough-key-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_to_serve(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[Served]:
    with served("tiny", "--storage", folder / "store", cwd=folder) as endpoint:
        yield endpoint


def load(folder: Path, url: str, *arguments: str) -> dict[str, Any]:
    """What tests/support/load.py saw."""
    command = [sys.executable, "-m", "tests.support.load", f"{url}/v1/samples",
               str(folder / "image.png"), "--field", "label=a", *arguments]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=command_environment(), capture_output=True, check=True
    )
    return dict(json.loads(done.stdout))


# One process


def test_one_process_from_its_start_to_ctrl_c(folder: Path) -> None:
    """It answers within seconds, asks for keys, cuts off endless heads, and ends."""
    keys = folder / "keys"
    keys.write_text(f"web:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    settings = ("--set", "header_timeout_s=0.5", "--set", "header_bytes=20000")
    started_at_s = time.monotonic()
    with served("tiny", "--storage", "store", "--keys", keys, *settings, cwd=folder) as endpoint:
        url = f"{endpoint.url}/v1/samples"
        good = httpx.post(url, **form(), headers={"authorization": f"Bearer {KEY}"})
        assert good.status_code == 200
        assert time.monotonic() - started_at_s < 30
        assert httpx.post(url, **form()).status_code == 401
        start = b"GET / HTTP/1.1\r\n"
        for head in (b"", start, start + b"x: " + b"y" * 40000):
            with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as slow:
                slow.sendall(head)
                with contextlib.suppress(ConnectionResetError):
                    assert slow.recv(1) == b""
        assert httpx.get(f"{endpoint.url}/readyz").status_code == 200
        endpoint.process.send_signal(signal.SIGINT)
        endpoint.process.wait(15)
        log = endpoint.log.read_text()
    assert KEY not in log
    assert "Traceback" not in log


def test_aalnet_sample_asks_an_endpoint(folder: Path, endpoint: Served) -> None:
    asked = ("--label", "a", "-k", "3", "--seed", "5")
    here = aalnet("sample", "tiny", "image.png", *asked, "--storage", "store", "--out", "here/",
                  cwd=folder)  # fmt: skip
    there = aalnet("sample", "image.png", *asked, "--url", endpoint.url, "--out", "there/",
                   cwd=folder)  # fmt: skip
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert len(list((folder / "there").iterdir())) == 3
    wrong = aalnet("sample", "image.png", "--label", "z", "--url", endpoint.url, cwd=folder)
    assert (wrong.returncode, "unknown label" in wrong.stderr) == (2, True)


def test_the_end_under_load_loses_nothing(folder: Path) -> None:
    answered: list[int] = []
    request = request_bytes("x", "/v1/samples", png_of(), {"label": "a", "num_samples": "3"})
    with served("tiny", "--storage", "store", "--set", "notice_s=2", cwd=folder) as endpoint:

        def ask(stop: threading.Event) -> None:
            with httpx.Client(base_url=endpoint.url, timeout=30) as client:
                while not stop.is_set():
                    answered.append(client.post("/v1/samples", **form()).status_code)

        slow = socket.create_connection(("127.0.0.1", endpoint.port), timeout=30)
        with in_background(ask), in_background(ask), in_background(ask):
            time.sleep(1)
            before = len(answered)
            slow.sendall(request[:-100])
            endpoint.terminate()
            time.sleep(0.5)
            during = httpx.get(f"{endpoint.url}/readyz")
        after = len(answered)
        until(lambda: not listens(endpoint.port))
        slow.sendall(request[-100:])  # begun before the end, so it is finished
        assert slow.recv(12) == b"HTTP/1.1 200"
        slow.close()
        assert endpoint.process.wait(30) == 0
    assert during.status_code == 503
    assert during.headers["connection"] == "close"
    assert after > before > 0
    assert set(answered) == {200}


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


# Enemies


@pytest.mark.timeout(300)
def test_hostile_images_harm_nothing(endpoint: Served) -> None:
    send(endpoint.url, "a", repeats(30, 60))
    before_mib = endpoint.resident_mib()
    seen = send(endpoint.url, "a", repeats(150, 350))
    assert set(seen) <= {200, 422}
    assert seen[422] > seen[200] > 0
    assert endpoint.resident_mib() < before_mib + 300
    assert "Traceback" not in endpoint.log.read_text()


@pytest.mark.timeout(240)
def test_fuzzed_against_its_own_schema(folder: Path, endpoint: Served) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{endpoint.url}/openapi.json",
            "--max-examples", str(repeats(25, 60)), "--generation-database", "none", "--no-color",
            # No schema can say what bytes are a picture, nor what labels a model knows.
            "--exclude-checks", "positive_data_acceptance",
        ],
        cwd=folder, env=command_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert endpoint.metric('aalnet_endpoint_rejected_total{reason="internal"}') == 0
    assert "Traceback" not in endpoint.log.read_text()


def test_slow_clients_do_not_slow_a_healthy_one(folder: Path, endpoint: Served) -> None:
    asked = ("--clients", "1", "--seconds", "3", "--field", "num_samples=1")
    with slow_clients(endpoint.url):
        beside = load(folder, endpoint.url, *asked)
    assert set(beside["counts"]) == {"200"}
    assert beside["p99_ms"]["200"] < 500  # a slow one's next byte is not waited for


def test_clients_that_hang_up_free_their_place(endpoint: Served) -> None:
    before = endpoint.metric("aalnet_endpoint_samples_total")
    request = request_bytes("x", "/v1/samples", png_of(), {"label": "a", "num_samples": "64"})
    address = ("127.0.0.1", endpoint.port)
    hasty = [socket.create_connection(address) for _ in range(4)]
    for each in hasty:
        each.sendall(request)
    for each in hasty:
        each.close()
    time.sleep(2)
    assert endpoint.metric("aalnet_endpoint_queued_samples") == 0
    assert endpoint.metric("aalnet_endpoint_samples_total") - before < 4 * 64
    assert httpx.post(f"{endpoint.url}/v1/samples", **form()).status_code == 200


@pytest.mark.timeout(300)
def test_more_load_than_it_can_carry(folder: Path) -> None:
    """How much of its peak is answered then is a benchmark's: `make bench-endpoint`."""
    clients, samples = 8, 32  # of which the queue holds two, and a batch one
    many = ("--field", f"num_samples={samples}")
    answered = 'aalnet_endpoint_requests_total{code="200",route="/v1/samples"}'
    with served("tiny", "--storage", "store", "--set", "queue_samples=64", cwd=folder) as endpoint:
        first = load(folder, endpoint.url, "--clients", "1", "--seconds", "2", *many)
        assert set(first["counts"]) == {"200"}
        before_mib = endpoint.resident_mib()
        seconds = str(repeats(6, 15))
        over = load(folder, endpoint.url, "--clients", str(clients), "--seconds", seconds, *many)
        assert set(over["counts"]) == {"200", "429"}
        assert over["p50_ms"]["429"] < over["p50_ms"]["200"] / 2  # who is refused does not wait
        assert endpoint.resident_mib() < before_mib + 100
        after = load(folder, endpoint.url, "--clients", "1", "--seconds", "2", *many)
        assert set(after["counts"]) == {"200"}
        drawn = endpoint.metric("aalnet_endpoint_samples_total")
        unread = drawn / samples - endpoint.metric(answered)  # of loads that had ended
        assert 0 <= unread <= clients + 2

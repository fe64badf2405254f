"""The client of the endpoint: what it sends, what it tries again, what it gives up."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from deploy.endpoint import client as endpoint_client
from deploy.endpoint.client import EndpointClient, EndpointError, EndpointRefused
from tests.support.tiny_runs import encoded, noise_picture

PICTURE = encoded(noise_picture(0))
GOOD = {
    "samples": [base64.b64encode(PICTURE).decode()] * 2,
    "model": "m",
    "checkpoint": "c",
}
Answer = tuple[int, dict[str, str], bytes]


class Server(HTTPServer):
    """Gives the answers it was told, in order; the last one again and again."""

    answers: list[Answer]
    asked: list[tuple[dict[str, str], dict[str, Any]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((headers, json.loads(body)))
        answers = self.server.answers
        status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.answers, made.asked = [(200, {}, json.dumps(GOOD).encode())], []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(endpoint_client.time, "sleep", slept.append)
    return slept


def refusal(status: int, **headers: str) -> Answer:
    return status, headers, json.dumps({"reason": "r", "message": "the reason"}).encode()


def test_a_request_and_its_answer(server: Server) -> None:
    drawn = EndpointClient(f"{server.url}/", "secret").sample(b"image", "a", 2, 7)
    assert (tuple(drawn.images.shape), drawn.model, drawn.checkpoint) == ((2, 3, 32, 32), "m", "c")
    headers, body = server.asked[0]
    assert headers["authorization"] == "Bearer secret"
    assert body == {
        "image": base64.b64encode(b"image").decode(), "label": "a", "num_samples": 2, "seed": 7,
        "temperature": 1.0, "format": "json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "failure", [refusal(429), refusal(503), (0, {}, b""), (200, {}, b"<html>")]
)
def test_it_tries_again_with_the_same_id(
    server: Server, failure: Answer, pauses: list[float]
) -> None:
    server.answers[:0] = [failure, failure]
    EndpointClient(server.url).sample(b"image", "a", 2, 7)
    ids = [headers["idempotency-key"] for headers, _ in server.asked]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert pauses == [0.5, 1.0]


def test_two_requests_have_two_ids(server: Server) -> None:
    client = EndpointClient(server.url)
    for _ in range(2):
        client.sample(b"image", "a", 2, 7)
    assert len({headers["idempotency-key"] for headers, _ in server.asked}) == 2


def test_it_waits_as_long_as_it_is_told(server: Server, pauses: list[float]) -> None:
    server.answers[:0] = [refusal(429, **{"retry-after": "3"})]
    EndpointClient(server.url).sample(b"image", "a", 2, 7)
    assert pauses == [3.0]


@pytest.mark.parametrize("status", [401, 413, 422])
def test_a_refusal_is_the_user_s_to_mend(server: Server, status: int) -> None:
    server.answers = [refusal(status)]
    with pytest.raises(EndpointRefused, match=f"answered {status}: the reason"):
        EndpointClient(server.url).sample(b"image", "a", 2, 7)
    assert len(server.asked) == 1


def test_in_the_end_it_gives_up(server: Server) -> None:
    server.answers = [refusal(503)]
    with pytest.raises(EndpointError, match="did not answer 5 times; last: the reason"):
        EndpointClient(server.url).sample(b"image", "a", 2, 7)
    assert len(server.asked) == 5


def test_nobody_listens() -> None:
    with pytest.raises(EndpointError, match="refused"):
        EndpointClient("http://127.0.0.1:9").sample(b"image", "a", 2, 7)


@pytest.mark.parametrize("body", [{}, {**GOOD, "samples": ["%"]}, {**GOOD, "samples": []}])
def test_an_answer_of_something_else(server: Server, body: dict[str, Any]) -> None:
    server.answers = [(200, {}, json.dumps(body).encode())]
    with pytest.raises(EndpointError, match="is not a sampling endpoint"):
        EndpointClient(server.url).sample(b"image", "a", 2, 7)


def test_a_url_of_another_kind() -> None:
    with pytest.raises(EndpointRefused, match="must start with http"):
        EndpointClient("file:///etc/passwd")

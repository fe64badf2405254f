"""An API server over real HTTP that answers like kube-apiserver, and fails on demand.

It checks what a real one checks: methods, paths, content types, the field manager, resource
versions, preconditions. `Fault`s make it answer 401, 403, 429, 500, or drop the connection.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support.kube_answers import (
    ClusterState,
    Request,
    check_permission,
    log_answer,
    object_answer,
    place_of,
    special_answer,
)
from tests.support.kube_store import Object, Refusal

TOKEN = "not-a-secret"
DROP = 0  # instead of a code: hang up
CUT = -1  # answer, and hang up in the middle of a stream


@dataclass
class Fault:
    """What the next `times` requests that match get instead of their answer."""

    method: str
    path: str  # a pattern
    code: int
    times: int = 1
    message: str = "it was told to fail"
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = "InternalError"


class KubeApi(ClusterState):
    """The server, its objects, logs and permissions; used as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (Handler,), {"api": self})
        )
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> KubeApi:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """A kubeconfig whose current context is this server."""
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }), encoding="utf-8")  # fmt: skip
        return path

    def sent(self, method: str, path: str = "") -> list[Request]:
        """Requests of a method whose path has a pattern."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """One request; `api` is set by the server's own subclass."""

    api: KubeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._answer()

    do_PATCH = do_POST = do_DELETE = do_GET

    def _answer(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length", "0"))
        text = self.rfile.read(length)
        body = yaml.safe_load(text) if text else None
        request = Request(self.command, split.path, query, dict(self.headers.items()), body)
        self.api.requests.append(request)
        fault = self.api.fault(self.command, split.path)
        try:
            if fault is not None and fault.code == DROP:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if fault is not None and fault.code != CUT:
                raise Refusal(fault.code, fault.reason, fault.message)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, "Unauthorized", "Unauthorized")
            self._do(request, cut=fault is not None)
        except Refusal as refusal:
            self._send(refusal.code, refusal.status, fault.headers if fault else {})

    def _do(self, request: Request, *, cut: bool) -> None:
        if special := special_answer(self.api, request):
            self._send(201 if request.method == "POST" else 200, special)
            return
        place = place_of(request.path, self.api.missing)
        if place is None:
            self._send(404, "404 page not found\n")
            return
        check_permission(self.api, request, place)
        if place.part == "log":
            self._stream(log_answer(self.api, request, place), cut=cut)
        else:
            self._send(*object_answer(self.api, request, place))

    def _send(self, code: int, answer: Object | str, headers: dict[str, str] | None = None) -> None:
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(code)
        kind = "text/plain" if isinstance(answer, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        for warning in self.api.warnings if self.command == "PATCH" else ():
            self.send_header("Warning", f'299 - "{warning}"')
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, lines: Iterator[bytes], *, cut: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(lines):
            if cut and number == 1:  # half a line, and gone
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line) // 2, line[: len(line) // 2]))
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

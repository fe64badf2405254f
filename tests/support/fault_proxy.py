"""A proxy in front of an S3 server that fails as stores and networks do, by a seeded rule.

The client's Host header goes on unchanged, so signatures still verify. Rules may be changed
while requests run; requests are counted by their kind.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

UPSTREAM_S = 60.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN
BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})
ERRORS = {
    "error_500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}
FAULTS = ("reset", "error_500", "slow_down", "truncated", "lost_reply")


@dataclass(frozen=True)
class Request:
    """One request as a rule sees it."""

    method: str
    kind: str  # put, create (conditional), part, begin, complete, abort, get, head, list, delete
    key: str  # `bucket/key`
    bytes: int  # of its body


@dataclass
class Rule:
    """What goes wrong. `share` of the matching requests fail, in one of `faults` each.

    `reset`: the connection breaks before the server hears anything. `lost_reply`: the server
    does the work, the client never learns. `truncated`: half the body comes, then a break.
    """

    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    latency_s: float = 0.0
    bytes_per_s: float = 0.0  # of bodies, both ways; 0: as fast as it goes
    down: bool = False  # every connection is refused
    matches: Callable[[Request], bool] = lambda request: True
    times: int | None = None  # so many faults, then none
    _chance: random.Random = field(init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def fault(self, request: Request) -> str | None:
        """The fault that this request meets, if any."""
        with self._lock:
            if self.down:
                return "reset"
            if not self.matches(request) or self.times == 0:
                return None
            if self._chance.random() >= self.share:
                return None
            if self.times is not None:
                self.times -= 1
            return self._chance.choice(self.faults)


class FaultProxy:
    """A running proxy; give its `endpoint` to the client under test."""

    def __init__(self, upstream: str, rule: Rule | None = None) -> None:
        self.rule = rule or Rule()
        self.requests: Counter[str] = Counter()  # by kind, failed ones too
        self.bytes: Counter[str] = Counter()  # of their bodies
        self.faults: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.lock = threading.Lock()
        where = urlsplit(upstream)
        assert where.hostname
        assert where.port
        self.upstream = where.hostname, where.port
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True
        )
        self._thread.start()

    def count(self) -> int:
        """All requests since the last `forget`."""
        with self.lock:
            return sum(self.requests.values())

    def forget(self) -> None:
        """Start counting anew."""
        with self.lock:
            self.requests.clear()
            self.bytes.clear()
            self.faults.clear()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def fault_proxy(upstream: str, rule: Rule | None = None) -> Iterator[FaultProxy]:
    """A proxy in front of `upstream` (http://host:port), stopped at the end."""
    proxy = FaultProxy(upstream, rule)
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away (killed, or tired of waiting) is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = UPSTREAM_S
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        length = int(self.headers.get("Content-Length") or 0)
        request = self._request(length)
        with proxy.lock:
            proxy.requests[request.kind] += 1
            proxy.bytes[request.kind] += request.bytes
            proxy.under_way[request.kind] += 1
        try:
            fault = proxy.rule.fault(request)
            if fault is not None:
                with proxy.lock:
                    proxy.faults[fault] += 1
            if fault == "reset":
                self._reset()
                return
            body = self._body(length)
            if proxy.rule.latency_s:
                time.sleep(proxy.rule.latency_s)
            if fault in ERRORS:
                self._fail(*ERRORS[fault])
                return
            self._answer(self._forward(body), fault)
        finally:
            with proxy.lock:
                proxy.under_way[request.kind] -= 1

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _request(self, length: int) -> Request:
        where = urlsplit(self.path)
        query = parse_qs(where.query, keep_blank_values=True)
        key = unquote(where.path).lstrip("/")
        return Request(self.command, self._kind(query, key), key, length)

    def _kind(self, query: dict[str, list[str]], key: str) -> str:
        if self.command == "PUT":
            return "part" if "partNumber" in query else (
                "create" if "If-None-Match" in self.headers else "put"
            )  # fmt: skip
        if self.command == "POST":
            return "begin" if "uploads" in query else "complete" if "uploadId" in query else "post"
        if self.command == "DELETE":
            return "abort" if "uploadId" in query else "delete"
        if self.command == "GET" and ("/" not in key or "list-type" in query or "uploads" in query):
            return "list"
        return self.command.lower()

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunks()
        self._at_rate(length)
        return self.rfile.read(length) if length else b""

    def _chunks(self) -> bytes:
        whole = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(whole)

    def _at_rate(self, size: int) -> None:
        if rate := self.server.proxy.rule.bytes_per_s:
            time.sleep(size / rate)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """The server's answer; None where it gave none."""
        connection = HTTPConnection(*self.server.proxy.upstream, timeout=UPSTREAM_S)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in BY_HOP:
                    connection.putheader(name, value)
            if body or self.command in {"PUT", "POST"}:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            reply = connection.getresponse()
            headers = [(n, v) for n, v in reply.getheaders() if n.lower() not in BY_HOP]
            length = reply.getheader("Content-Length")
            if self.command == "HEAD" and length is not None:
                headers.append(("Content-Length", length))
            return reply.status, headers, reply.read()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def _answer(
        self, answer: tuple[int, list[tuple[str, str]], bytes] | None, fault: str | None
    ) -> None:
        if answer is None or fault == "lost_reply":
            self._reset()
            return
        status, headers, body = answer
        self._at_rate(len(body))
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status not in {204, 304}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._reset()
            return
        self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            socket.close(self.connection.detach())  # at once, whatever files are open on it

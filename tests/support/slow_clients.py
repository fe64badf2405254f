"""Clients that keep an endpoint waiting on purpose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.support.endpoint_models import in_background

SLOW_CLIENTS = 200


@contextlib.contextmanager
def slow_clients(url: str, count: int = SLOW_CLIENTS) -> Iterator[None]:
    """Connections that announce a body and let it drip, a byte every half second each."""
    parts = urlsplit(url)
    head = b"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    slow = [socket.create_connection((parts.hostname, parts.port)) for _ in range(count)]

    def drip(over: threading.Event) -> None:
        while not over.wait(0.5):
            for each in slow:
                with contextlib.suppress(OSError):  # cut off by the endpoint, as it should be
                    each.sendall(b"x")

    for each in slow:
        each.sendall(head)
    try:
        with in_background(drip):
            yield
    finally:
        for each in slow:
            each.close()

"""A cheap HTTP client that loads an endpoint: `python -m tests.support.load`; prints JSON.

One thread and epoll, with requests made beforehand: it must cost little beside what it measures.
Closed loop (`--clients`: each sends its next request when it has its answer) or open
(`--rate`: requests start on time, whatever became of the earlier ones).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

BOUNDARY = "load-boundary"
SLOW_CLIENTS = 200


def request_bytes(
    host: str, path: str, image: bytes, fields: dict[str, str], key: str | None = None
) -> bytes:
    """A whole POST with a multipart body."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    body = b"".join([*parts, head.encode(), image, f"\r\n--{BOUNDARY}--\r\n".encode()])
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    start = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    return start.encode() + body


@dataclass(eq=False)
class Connection:
    """One client."""

    address: tuple[str, int]
    socket: socket.socket | None = None
    received: bytearray = field(default_factory=bytearray)
    sent_at_s: float = 0.0
    waits: bool = False  # for an answer

    def send(self, request: bytes, poll: select.epoll, open_: dict[int, Connection]) -> None:
        """Send a request, over a new connection where there is none."""
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_[self.socket.fileno()] = self
            poll.register(self.socket, select.EPOLLIN)
        self.received.clear()
        self.sent_at_s = time.perf_counter()
        self.waits = True
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bool] | None:
        """(status, does the server close) once the answer is whole; status 0 when cut off."""
        assert self.socket is not None
        try:
            chunk = self.socket.recv(262144)
        except OSError:
            chunk = b""
        if not chunk:
            return 0, True
        self.received += chunk
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(self.received) < end + 4 + length:
            return None
        return int(head[9:12]), b"connection: close" in head

    def close(self, open_: dict[int, Connection]) -> None:
        """Close and forget it."""
        if self.socket is not None:
            del open_[self.socket.fileno()]
            self.socket.close()
            self.socket = None


@dataclass
class Latencies:
    """Latencies by status; 0 stands for a connection that broke."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.seconds.setdefault(status, []).append(seconds)

    def report(self, elapsed_s: float) -> dict[str, object]:
        """Counts, rate and latencies."""
        counts = Counter({status: len(times) for status, times in self.seconds.items()})
        return {
            "elapsed_s": elapsed_s,
            "counts": {str(status): count for status, count in counts.items()},
            "per_s": counts[200] / elapsed_s,
            **{
                f"p{percent}_ms": {
                    str(status): 1e3
                    * sorted(times)[min(len(times) - 1, len(times) * percent // 100)]
                    for status, times in self.seconds.items()
                }
                for percent in (50, 99)
            },
        }


def closed(address: tuple[str, int], requests: Iterator[bytes], clients: int, seconds: float,
           warm_s: float) -> dict[str, object]:  # fmt: skip
    """`clients` connections, each with one request under way at any time."""
    poll, open_ = select.epoll(), dict[int, Connection]()
    for _ in range(clients):
        Connection(address).send(next(requests), poll, open_)
    latencies = Latencies()
    start_s = time.perf_counter() + warm_s
    while (now_s := time.perf_counter()) < start_s + seconds:
        for number, _ in poll.poll(1.0):
            connection = open_[number]
            answer = connection.receive()
            if answer is None:
                continue
            status, ends = answer
            now_s = time.perf_counter()
            if now_s >= start_s:
                latencies.add(status, now_s - connection.sent_at_s)
            if ends:
                connection.close(open_)
            connection.send(next(requests), poll, open_)
    return latencies.report(now_s - start_s)


def paced(address: tuple[str, int], requests: Iterator[bytes], rate: float, seconds: float,
          warm_s: float) -> dict[str, object]:  # fmt: skip
    """`rate` requests a second, on connections that are made as they are needed."""
    poll, open_ = select.epoll(), dict[int, Connection]()
    idle: list[Connection] = []
    latencies = Latencies()
    begun_s = time.perf_counter()
    sent = 0
    while (now_s := time.perf_counter()) < begun_s + warm_s + seconds:
        late_s = now_s - begun_s - sent / rate
        if late_s >= 0:
            connection = idle.pop() if idle else Connection(address)
            try:
                connection.send(next(requests), poll, open_)
            except OSError:
                connection.close(open_)
            sent += 1
        for number, _ in poll.poll(min(0.01, max(-late_s, 0))):  # also when it is late
            connection = open_[number]
            answer = connection.receive()
            if answer is None:
                continue
            if answer[1]:
                connection.close(open_)
            if not connection.waits:  # the server has closed an idle one, as it may
                continue
            if time.perf_counter() >= begun_s + warm_s:
                latencies.add(answer[0], time.perf_counter() - connection.sent_at_s)
            connection.waits = False
            idle.append(connection)
    return {**latencies.report(seconds), "sent": sent}


@contextlib.contextmanager
def slow_clients(url: str, count: int = SLOW_CLIENTS) -> Iterator[None]:
    """Connections that announce a body and let it drip, a byte every half second each."""
    parts = urlsplit(url)
    head = b"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    slow = [socket.create_connection((parts.hostname, parts.port)) for _ in range(count)]

    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.5):
            for each in slow:
                with contextlib.suppress(OSError):  # cut off by the endpoint, as it should be
                    each.sendall(b"x")

    for each in slow:
        each.sendall(head)
    thread = threading.Thread(target=drip)
    try:
        thread.start()
        yield
    finally:
        over.set()
        thread.join()
        for each in slow:
            each.close()


def main() -> None:
    """Load an endpoint and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--key")
    options = parser.parse_args()
    parts = urlsplit(options.url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    fields = dict(item.split("=", 1) for item in options.field)
    requests = cycle([
        request_bytes(
            parts.netloc, parts.path or "/v1/samples", path.read_bytes(),
            {"seed": str(seed), **fields}, options.key,
        )
        for seed, path in enumerate(options.images)
    ])  # fmt: skip
    if options.rate:
        report = paced(address, requests, options.rate, options.seconds, options.warm_s)
    else:
        report = closed(address, requests, options.clients, options.seconds, options.warm_s)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()

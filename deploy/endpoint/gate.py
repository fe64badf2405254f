"""The gate before the application: keys, rates, sizes and time limits, in that order.

Everything that can be refused by the head of a request is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.endpoint.batcher import Arrival, Batcher
from deploy.endpoint.errors import HttpError
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.security import Keys, Rates
from deploy.endpoint.settings import EndpointSettings

GUARDED = "/v1/"
SAMPLES = "/v1/samples"
ROUTES = frozenset({"/", SAMPLES, "/v1/model", "/healthz", "/readyz", "/metrics"})
LINGER_S = 2.0
SMALL_BODY_BYTES = 64 * 2**10  # dropped unread, and the connection goes on
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; "
     b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
]  # fmt: skip
FAILED = HttpError(500, "internal", "the endpoint failed")
log = logging.getLogger("aalnet.endpoint")


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, settings: EndpointSettings, keys: Keys, metrics: Metrics,
        batcher: Batcher,
    ) -> None:  # fmt: skip
        self.app, self.settings, self.keys, self.metrics = app, settings, keys, metrics
        self.batcher = batcher
        self.rates = Rates(settings)
        self.in_flight = 0
        self.bodies_bytes = 0
        self.closing = False  # the answers ask clients to connect anew, elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, scope, self)
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self._admitted(scope, receive, answer)
        except TimeoutError:
            refusal = HttpError(503, "timeout", "it took too long", retry_after_s=1)
            await answer.refuse(refusal)
        except HttpError as refusal:
            await answer.refuse(refusal)
        except ClientGone:
            self.metrics.rejected.labels("gone").inc()
        except Exception:  # the last resort: nothing of it may reach the client
            log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(FAILED)
        finally:
            self.in_flight -= 1

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, answer.send)
            return
        headers = dict(scope["headers"])
        caller = self.keys.caller(headers)
        self.rates.take(caller)
        scope.setdefault("state", {})["caller"] = caller
        if scope["path"] != SAMPLES or scope["method"] != "POST":
            await self.app(scope, receive, answer.send)
            return
        if self.batcher.full or self.in_flight > self.settings.in_flight:
            raise self.batcher.refusal()
        arrival = scope["state"]["arrival"] = self.batcher.arrive()
        body = answer.request = _Body(self, receive)
        try:
            await asyncio.sleep(0)  # requests that came together are all counted before one runs
            await body.read(headers, arrival)
            await self._run_until_gone(scope, body, answer)
        finally:
            arrival.end()
            self.bodies_bytes -= body.size_bytes

    async def _run_until_gone(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        """Run the application; when the client hangs up first, cancel it."""
        running = asyncio.ensure_future(self.app(scope, body.replay, answer.send))
        gone = asyncio.ensure_future(body.gone())
        try:
            await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise ClientGone
            running.result()
        finally:
            gone.cancel()
            if not running.done():
                running.cancel()
                await asyncio.wait({running})


class ClientGone(Exception):
    """The client hung up before its answer."""


class _Body:
    """The body of one request, read whole, within its limits."""

    def __init__(self, gate: Gate, receive: Receive) -> None:
        self.gate, self.receive = gate, receive
        self.size_bytes = 0
        self._chunks: list[bytes] = []
        self._replayed = False

    async def read(self, headers: dict[bytes, bytes], arrival: Arrival) -> None:
        """Read it all. A body that comes in pieces holds back no batch.

        Raises:
            HttpError: it is too large, or too slow.
        """
        settings = self.gate.settings
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > settings.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                while await self._chunk():
                    arrival.end()
        except TimeoutError:
            raise HttpError(408, "slow", "the body took too long to arrive") from None

    async def _chunk(self) -> bool:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        self.size_bytes += len(chunk)
        self.gate.bodies_bytes += len(chunk)
        if self.size_bytes > self.gate.settings.body_bytes:
            raise self._too_large()
        if self.gate.bodies_bytes > self.gate.settings.bodies_bytes:
            raise self.gate.batcher.refusal()
        self._chunks.append(chunk)
        return bool(message.get("more_body", False))

    def _too_large(self) -> HttpError:
        limit = self.gate.settings.body_bytes
        return HttpError(413, "size", f"a body may have at most {limit:,} bytes")

    async def replay(self) -> Message:
        """Receive for the application: the whole body at once."""
        if self._replayed:
            return {"type": "http.disconnect"}
        self._replayed = True
        return {"type": "http.request", "body": b"".join(self._chunks), "more_body": False}

    async def drop_rest(self) -> None:
        """Read on a little and drop it: a client that still sends would miss the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                dropped_bytes = 0
                while dropped_bytes < self.gate.settings.body_bytes:
                    message = await self.receive()
                    dropped_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break

    async def gone(self) -> None:
        """Return when the client has hung up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class _Answer:
    """Send, with the headers that every answer carries, and its count."""

    def __init__(self, send: Send, scope: Scope, gate: Gate) -> None:
        self._send, self._scope, self._gate = send, scope, gate
        self.request: _Body | None = None  # once it is read
        path = scope["path"]
        self._route = path if path in ROUTES else "other"
        self._samples = path == SAMPLES
        self._started_at_s = time.perf_counter()
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message.get("headers", ()), *SAFE]
            if self._gate.closing:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
            self._gate.metrics.requests.labels(self._route, str(message["status"])).inc()
            if self._samples and message["status"] == 200:
                took_s = time.perf_counter() - self._started_at_s
                self._gate.metrics.total_seconds.observe(took_s)
        await self._send(message)

    async def refuse(self, refusal: HttpError) -> None:
        """Answer with an error. Where an unread body may follow, the connection ends."""
        self._gate.metrics.rejected.labels(refusal.reason).inc()
        if self.started:
            return
        body = json.dumps(refusal.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in refusal.headers().items()),
        ]
        lingers = refusal.status == 413 and self.request is not None
        if (refusal.status in (408, 413) or self._unread) and not self._gate.closing:
            headers.append((b"connection", b"close"))
        status = refusal.status
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": lingers})
        if lingers and self.request is not None:
            await self.request.drop_rest()
            await self.send({"type": "http.response.body", "body": b""})

    @property
    def _unread(self) -> bool:
        """May a body follow that is too large to be dropped unread?"""
        if self.request is not None:
            return False
        length = dict(self._scope["headers"]).get(b"content-length", b"")
        if not length:
            return b"transfer-encoding" in dict(self._scope["headers"])
        return not length.isdigit() or int(length[:20]) > SMALL_BODY_BYTES

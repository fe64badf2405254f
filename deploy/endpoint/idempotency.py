"""Safe retries: answers kept by the id that a client gave its request."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deploy.endpoint.errors import HttpError
from deploy.endpoint.settings import EndpointSettings

ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    body: bytes
    media_type: str
    headers: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    request_digest: bytes
    reply: asyncio.Future[Answer]
    stored_at_s: float


class IdempotencyCache:
    """Answers by caller and id: a retry gets the first try's answer, or waits for it."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    async def once(
        self, caller: str, id_: str, request: bytes, answer: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer to an id, made by `answer` where there is none yet.

        Raises:
            HttpError: the id is malformed, or was given to another request.
        """
        if not ID.fullmatch(id_):
            raise HttpError(422, "id", "Idempotency-Key must be 1 to 128 printable characters")
        key, digest = (caller, id_), hashlib.sha256(request).digest()
        self._sweep()
        entry = self._entries.get(key)
        if entry is not None and entry.request_digest != digest:
            raise HttpError(409, "id", "this Idempotency-Key was given to another request")
        if entry is not None:
            try:
                return await asyncio.shield(entry.reply)
            except asyncio.CancelledError:
                if not entry.reply.cancelled():  # it is we who were cancelled
                    raise
        return await self._first(key, digest, answer)

    async def _first(
        self, key: tuple[str, str], digest: bytes, answer: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        entry = _Entry(digest, asyncio.get_running_loop().create_future(), time.monotonic())
        self._entries[key] = entry
        try:
            reply = await answer()
        except BaseException:  # a failure is not kept: the retry is another try
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.reply.cancel()
            raise
        entry.reply.set_result(reply)
        self._bytes += len(reply.body)
        return reply

    def _sweep(self) -> None:
        """Forget what is too old, and the oldest while all together are too large."""
        before_s = time.monotonic() - self._settings.remember_s
        for key, entry in list(self._entries.items()):
            if entry.stored_at_s > before_s and self._bytes <= self._settings.remember_bytes:
                break
            if entry.reply.done():
                self._bytes -= len(entry.reply.result().body)
                del self._entries[key]

"""Safe retries: answers kept by the id that a client gave its request."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deploy.endpoint.refusals import Refused
from deploy.endpoint.settings import EndpointSettings

ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    body: bytes
    media_type: str
    headers: dict[str, str]


@dataclass(frozen=True)
class _Kept:
    request_digest: bytes
    reply: asyncio.Future[Reply]
    kept_at_s: float


class Replies:
    """Answers by caller and id: a retry gets the first try's answer, or waits for it."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    async def once(
        self, caller: str, id_: str, request: bytes, answer: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        """The answer to an id, made by `answer` where there is none yet.

        Raises:
            Refused: the id is malformed, or was given to another request.
        """
        if not ID.fullmatch(id_):
            raise Refused(422, "id", "Idempotency-Key must be 1 to 128 printable characters")
        key, digest = (caller, id_), hashlib.sha256(request).digest()
        self._sweep()
        kept = self._kept.get(key)
        if kept is not None and kept.request_digest != digest:
            raise Refused(409, "id", "this Idempotency-Key was given to another request")
        if kept is not None:
            try:
                return await asyncio.shield(kept.reply)
            except asyncio.CancelledError:
                if not kept.reply.cancelled():  # it is we who were cancelled
                    raise
        return await self._first(key, digest, answer)

    async def _first(
        self, key: tuple[str, str], digest: bytes, answer: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        kept = _Kept(digest, asyncio.get_running_loop().create_future(), time.monotonic())
        self._kept[key] = kept
        try:
            reply = await answer()
        except BaseException:  # a failure is not kept: the retry is another try
            if self._kept.get(key) is kept:
                del self._kept[key]
            kept.reply.cancel()
            raise
        kept.reply.set_result(reply)
        self._bytes += len(reply.body)
        return reply

    def _sweep(self) -> None:
        """Forget what is too old, and the oldest while all together are too large."""
        before_s = time.monotonic() - self._settings.remember_s
        for key, kept in list(self._kept.items()):
            if kept.kept_at_s > before_s and self._bytes <= self._settings.remember_bytes:
                break
            if kept.reply.done():
                self._bytes -= len(kept.reply.result().body)
                del self._kept[key]

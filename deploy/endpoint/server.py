"""Hosting by uvicorn: limits on the head of a request, and a shutdown that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aalnet.errors import ConfigError
from deploy.endpoint.app import Application
from deploy.endpoint.service import Service
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


def guarded_protocol(settings: EndpointSettings) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, with a limit in bytes and in time on the head of a request."""

    class Guarded(HttpToolsProtocol):
        """One connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_bytes = 0
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect_head()

        def on_headers_complete(self) -> None:
            self._deadline.cancel()
            self._in_head = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > settings.header_bytes:
                    self.transport.abort()

        def _expect_head(self) -> None:
            self._in_head, self._head_bytes = True, 0
            self._deadline: asyncio.TimerHandle = getattr(self, "_deadline", None) or _NOTHING
            self._deadline.cancel()
            self._deadline = self.loop.call_later(settings.header_timeout_s, self.transport.abort)

    return Guarded


class _Nothing:
    def cancel(self) -> None: ...


_NOTHING: Any = _Nothing()


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first says "not ready" for a while, with the port still open."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self.application = application

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: not ready for `notice_s`, then the end; a second signal or Ctrl-C: at once."""
        if self.should_exit or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        log.info("stopping: not ready any more, accepted work is finished")
        self.application.service.ready = False
        self.application.gate.closing = True
        loop = asyncio.get_running_loop()
        notice_s = self.application.service.settings.notice_s
        loop.call_soon_threadsafe(loop.call_later, notice_s, self._close)

    def _close(self) -> None:
        self.should_exit = True  # not by the signal, so that the process ends with 0


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. Raises ConfigError where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
    listening.setblocking(False)
    return listening


def serve(service: Service, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = service.settings
    application = Application(service)
    config = uvicorn.Config(
        application,
        http=guarded_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # /metrics counts; a line per request costs a tenth of the throughput
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s - settings.notice_s)),
        timeout_keep_alive=15,
    )
    Server(config, application).run(sockets=[listening])

"""A scrape address while something runs: Prometheus finds it, and sees the figures of the end."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from aalnet.settings import TelemetrySettings
from cluster.telemetry.targets import INSTANCE, Target, announced

SCRAPER = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"  # a header of scrapers, not of people
SCRAPES = 5  # of the last ones, the longest pause tells how often somebody scrapes
PORT = 9464  # OpenTelemetry's for Prometheus exporters; manifests name it `aalnet-metrics`
Warn = Callable[[str], None]


class ScrapeTimes:
    """When scrapers came of late."""

    def __init__(self) -> None:
        self.at_s: deque[float] = deque(maxlen=SCRAPES)  # monotonic
        self._came = threading.Condition()

    def noting(self, app: Any) -> Any:
        """The same WSGI application; once a scraper's answer is out, the scrape is noted."""

        def answer(environ: Any, start_response: Any) -> Iterator[bytes]:
            started_s = time.monotonic()
            yield from app(environ, start_response)
            if SCRAPER in environ:
                with self._came:
                    self.at_s.append(started_s)
                    self._came.notify_all()

        return answer

    def await_one(self, limit_s: float) -> None:
        """Wait for one more scrape, where there were any of late, for as long as they take."""
        with self._came:
            pauses_s = [after - before for before, after in pairwise(self.at_s)]
            if not pauses_s:
                return
            every_s, now_s = max(pauses_s), time.monotonic()
            if now_s - self.at_s[-1] > 2 * every_s:  # nobody scrapes any more
                return
            self._came.wait_for(lambda: self.at_s[-1] > now_s, min(every_s + 1, limit_s))


def print_warning(text: str) -> None:
    """A warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def serve(
    instance: str, settings: TelemetrySettings, collector: Collector, warn: Warn = print_warning
) -> Iterator[int | None]:
    """Serve a collector's metrics while the block runs; gives the port, None where it fails.

    Where somebody scrapes, the end waits until the figures of the end were scraped; not where
    the block was interrupted. A port that is taken, a folder that cannot be written: `warn`, once.
    """
    scrapes, waits = ScrapeTimes(), True
    with contextlib.ExitStack() as stack:
        port = None
        if settings.port != 0:
            try:
                port = stack.enter_context(_served(instance, settings, collector, scrapes, warn))
            except (OSError, UnicodeError) as error:  # UnicodeError: of a host's name
                warn(f"no metrics are served: {error}; see telemetry.port and telemetry.host")
        try:
            yield port
        except (KeyboardInterrupt, SystemExit):
            waits = False
            raise
        finally:
            if waits:
                scrapes.await_one(settings.linger_s)


@contextlib.contextmanager
def _served(
    instance: str,
    settings: TelemetrySettings,
    collector: Collector,
    scrapes: ScrapeTimes,
    warn: Warn,
) -> Iterator[int]:
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = _start(settings, registry)
    server.set_app(_of(instance, scrapes.noting(server.get_app())))
    target = Target(instance, settings.host, server.server_port, os.getpid())
    try:
        with announced(target, warn):
            yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _of(instance: str, app: Any) -> Any:
    """The same WSGI application, which answers nobody who asks for another instance.

    Where a run takes the port of one that has ended, a scrape may still be meant for that one.
    """

    def answer(environ: Any, start_response: Any) -> Any:
        meant = parse_qs(environ.get("QUERY_STRING", "")).get(INSTANCE, [instance])
        if meant != [instance]:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{instance} is served here\n".encode()]
        return app(environ, start_response)

    return answer


def _start(settings: TelemetrySettings, registry: CollectorRegistry) -> Any:
    """The server and its thread; on `auto`, where the usual port is taken, on a free one."""
    if settings.port != "auto":
        return start_http_server(settings.port, settings.host, registry)
    try:
        return start_http_server(PORT, settings.host, registry)
    except OSError:
        return start_http_server(0, settings.host, registry)

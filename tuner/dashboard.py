"""optuna-dashboard on a campaign's study, for this machine's browser alone.

Its own `run_server` answers one request at a time, logs each, and takes no free port.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from aalnet.errors import ConfigError
from tuner.campaign import Campaign

HOST = "127.0.0.1"  # it asks nobody for a password


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request, so that a slow storage holds up nobody else."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs no requests: the page asks every few seconds."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def dashboard(campaign: Campaign, port: int) -> Iterator[str]:
    """Serve it while the block runs; gives its address. A journal is open for reading only.

    Raises:
        ConfigError: optuna-dashboard is not installed, or the port (0: any) is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigError(
            f"optuna-dashboard cannot be imported: {error}; pip install 'aalnet-cloud[dashboard]'"
        ) from error
    app = wsgi(campaign.open_storage(writes=False))
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {HOST} cannot be had: {error.strerror}; choose another with --port"
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, name="dashboard", daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/dashboard"
        finally:
            server.shutdown()
            thread.join()

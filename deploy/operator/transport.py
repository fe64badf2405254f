"""Requests to the API server and their answers, asked for again where that may help.

The `kubernetes` client brings credentials, TLS and connections.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence

import urllib3
from kubernetes.client import ApiClient, ApiException

from aalnet.errors import UserError
from deploy.operator.answers import of_status, read_status, retry_after_s
from deploy.operator.errors import ClusterError
from deploy.operator.objects import MANAGER, Object

JSON = "application/json"  # the client itself writes it; other types it wants as text
CONNECT_S, READ_S = 10.0, 60.0
PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before an answer that may be better is asked for again
LONGEST_PAUSE_S = 30.0
AGAIN = {429, 500, 502, 503, 504}
Query = Sequence[tuple[str, str]]


class Unreachable(ClusterError):
    """No answer, or none but `later`."""


class Transport:
    """One server, as one user. `warn` gets what the server warns of.

    Every request of this project may be sent twice: reads, server-side applies, and deletions of
    one very object.
    """

    def __init__(self, client: ApiClient, warn: Callable[[str], None]) -> None:
        self._client, self._warn = client, warn
        self.address: str = client.configuration.host

    def json(
        self, method: str, path: str, what: str, query: Query = (), body: Object | None = None,
        content_type: str = JSON,
    ) -> Object:  # fmt: skip
        with self.open(method, path, what, query, body, content_type) as response:
            found: Object = json.loads(response.data)
            return found

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, what: str, query: Query = (), body: Object | None = None,
        content_type: str = JSON, read_s: float = READ_S,
    ) -> Iterator[urllib3.BaseHTTPResponse]:  # fmt: skip
        """A good answer, still to be read."""
        response = self._asked(method, path, what, query, body, content_type, read_s)
        try:
            yield response
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(f"{what}: the answer broke off: {error}; try again") from error
        finally:
            response.close()

    def _asked(
        self, method: str, path: str, what: str, query: Query, body: Object | None,
        content_type: str, read_s: float,
    ) -> urllib3.BaseHTTPResponse:  # fmt: skip
        for pause_s in (*PAUSES_S, None):
            error: Exception
            try:
                response = self._once(method, path, query, body, content_type, read_s)
            except (urllib3.exceptions.HTTPError, ApiException) as broken:
                error = Unreachable(f"{what}: {self.address} cannot be reached: {_reason(broken)}")
                if isinstance(broken, ApiException) or pause_s is None:  # TLS does not mend itself
                    raise error from broken
                wait_s = pause_s
            else:
                for warning in response.headers.getlist("Warning"):
                    self._warn(warning.partition('"')[2].rstrip('"'))
                if response.status < 300:
                    return response
                status = read_status(response.data)
                response.close()
                error = of_status(response.status, status, what)
                if response.status not in AGAIN or isinstance(error, UserError):
                    raise error
                if pause_s is None:
                    raise Unreachable(f"{error}; try again later") from error
                told_s = retry_after_s(status, response.headers.get("Retry-After"))
                wait_s = min(pause_s if told_s is None else told_s, LONGEST_PAUSE_S)
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _once(
        self, method: str, path: str, query: Query, body: Object | None, content_type: str,
        read_s: float,
    ) -> urllib3.BaseHTTPResponse:  # fmt: skip
        headers = {"Accept": JSON, "User-Agent": MANAGER}
        if body is not None:
            headers["Content-Type"] = content_type
        request = self._client.param_serialize(
            method, path, query_params=list(query), header_params=headers,
            body=body if content_type == JSON else json.dumps(body), auth_settings=["BearerToken"],
        )  # fmt: skip
        answer = self._client.call_api(*request, _request_timeout=(CONNECT_S, read_s))
        response: urllib3.BaseHTTPResponse = answer.response
        return response


def lines_of(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines as they come. A line that breaks off with the connection is not one."""
    rest = b""
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        while chunk := response.read1():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest


def _reason(error: Exception) -> str:
    told = getattr(error, "reason", None) or error
    return " ".join(str(told).split())[:200]

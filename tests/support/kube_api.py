"""An API server over real HTTP that answers like kube-apiserver, and fails on demand.

It checks what a real one checks: methods, paths, content types, the field manager, resource
versions, preconditions. `Fault`s make it answer 401, 403, 429, 500, or drop the connection.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.kube_store import KINDS, Object, Objects, Refusal

TOKEN = "not-a-secret"
DROP = 0  # instead of a code: hang up
CUT = -1  # answer, and hang up in the middle of a stream
APPLY = "application/apply-patch+yaml"


@dataclass
class Fault:
    """What the next `times` requests that match get instead of their answer."""

    method: str
    path: str  # a pattern
    code: int
    times: int = 1
    message: str = "it was told to fail"
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = "InternalError"


@dataclass(frozen=True)
class Request:
    """As it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Object | None


class KubeApi:
    """The server, its objects, logs and permissions; used as a context."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.logs: dict[str, list[str]] = {}  # pod: lines, each with its time
        self.open_logs: set[str] = set()  # pods whose logs go on
        self.forbidden: set[tuple[str, str]] = set()  # verb, resource
        self.missing: set[str] = set()  # groups that are not installed
        self.warnings: list[str] = []  # of every answer to a patch
        self.version = "v1.34.1"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> KubeApi:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """A kubeconfig whose current context is this server."""
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }), encoding="utf-8")  # fmt: skip
        return path

    def sent(self, method: str, path: str = "") -> list[Request]:
        """Requests of a method whose path has a pattern."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


@dataclass(frozen=True)
class Place:
    """What a path is about."""

    kind: str
    namespace: str = ""
    name: str | None = None
    part: str = ""


def place_of(path: str, missing: set[str]) -> Place | None:
    """`/apis/ray.io/v1/namespaces/aalnet/rayjobs/x/log`, read from left to right."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    version = "/".join(parts[1:3]) if parts[0] == "apis" else parts[1]
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = ""
    if not rest:
        return None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    for kind, (of_kind, plural, _) in KINDS.items():
        if of_kind == version and plural == rest[0] and version.split("/")[0] not in missing:
            return Place(kind, namespace, *rest[1:3])
    return None


def _handler(api: KubeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def do_GET(self) -> None:
            self._answer()

        do_PATCH = do_POST = do_DELETE = do_GET

        def _answer(self) -> None:
            split = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(split.query).items()}
            length = int(self.headers.get("Content-Length", "0"))
            text = self.rfile.read(length)
            body = yaml.safe_load(text) if text else None
            request = Request(self.command, split.path, query, dict(self.headers.items()), body)
            api.requests.append(request)
            fault = api.fault(self.command, split.path)
            try:
                if fault is not None and fault.code == DROP:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if fault is not None and fault.code != CUT:
                    raise Refusal(fault.code, fault.reason, fault.message)
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Refusal(401, "Unauthorized", "Unauthorized")
                self._do(request, cut=fault is not None)
            except Refusal as refusal:
                self._send(refusal.code, refusal.status, fault.headers if fault else {})

        def _do(self, request: Request, *, cut: bool) -> None:
            if special := _special(api, request):
                self._send(201 if request.method == "POST" else 200, special)
                return
            place = place_of(request.path, api.missing)
            if place is None:
                self._send(404, "404 page not found\n")
                return
            _check_permission(api, request, place)
            if place.part == "log":
                self._stream(_log(api, request, place), cut=cut)
            else:
                self._send(*_object(api, request, place))

        def _send(
            self, code: int, answer: Object | str, headers: dict[str, str] | None = None
        ) -> None:
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            kind = "text/plain" if isinstance(answer, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            for warning in api.warnings if self.command == "PATCH" else ():
                self.send_header("Warning", f'299 - "{warning}"')
            self.end_headers()
            self.wfile.write(text)

        def _stream(self, lines: Iterator[bytes], *, cut: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, line in enumerate(lines):
                if cut and number == 1:  # half a line, and gone
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line) // 2, line[: len(line) // 2]))
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    return Handler


def _special(api: KubeApi, request: Request) -> Object | None:
    """Version, discovery and access reviews."""
    if request.path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": api.version, "platform": "linux/amd64"}
    if request.path.endswith("/selfsubjectaccessreviews"):
        assert request.method == "POST"
        assert request.body is not None
        attributes = request.body["spec"]["resourceAttributes"]
        resource = "/".join(attributes[k] for k in ("resource", "subresource") if attributes.get(k))
        allowed = (attributes["verb"], resource) not in api.forbidden
        return {**request.body, "status": {"allowed": allowed}}
    parts = request.path.strip("/").split("/")
    if parts[0] != "apis" or not 2 <= len(parts) <= 3 or parts[1] in api.missing:
        return None
    versions = {version for version, _, _ in KINDS.values() if version.startswith(f"{parts[1]}/")}
    if parts[1] in ("metrics.k8s.io", "custom.metrics.k8s.io"):
        versions = {f"{parts[1]}/v1beta1"}
    if len(parts) == 2 and versions:
        return {"kind": "APIGroup", "apiVersion": "v1", "name": parts[1], "versions": [
            {"groupVersion": version, "version": version.split("/")[1]}
            for version in sorted(versions)]}  # fmt: skip
    if "/".join(parts[1:]) in versions:
        resources = [{"name": plural, "kind": kind} for kind, (version, plural, _) in KINDS.items()
                     if version == "/".join(parts[1:])]  # fmt: skip
        return {"kind": "APIResourceList", "groupVersion": "/".join(parts[1:]),
                "resources": resources}  # fmt: skip
    return None


def _check_permission(api: KubeApi, request: Request, place: Place) -> None:
    verbs = {"GET": "get" if place.name else "list", "PATCH": "patch", "DELETE": "delete"}
    verb, (version, plural, _) = verbs[request.method], KINDS[place.kind]
    resource = f"{plural}/{place.part}" if place.part else plural
    if (verb, resource) in api.forbidden:
        group = version.partition("/")[0] if "/" in version else ""
        where = (
            f'in the namespace "{place.namespace}"' if place.namespace else "at the cluster scope"
        )
        raise Refusal(403, "Forbidden", (
            f'{plural} is forbidden: User "alice" cannot {verb} resource "{resource}" in API group '
            f'"{group}" {where}'))  # fmt: skip


def _object(api: KubeApi, request: Request, place: Place) -> tuple[int, Object]:
    if request.method == "GET" and place.name is None:
        items = [item for item in api.objects.list(place.kind, place.namespace or None)
                 if _selected(item, request.query)]  # fmt: skip
        bare = [{k: v for k, v in i.items() if k not in ("kind", "apiVersion")} for i in items]
        return 200, {"kind": f"{place.kind}List", "apiVersion": KINDS[place.kind][0],
                     "metadata": {}, "items": bare}  # fmt: skip
    assert place.name is not None
    if request.method == "GET":
        return 200, api.objects.get(place.kind, place.namespace, place.name)
    if request.method == "DELETE":
        options = request.body or {}
        return 200, api.objects.delete(place.kind, place.namespace, place.name, options)
    return _patch(api, request, place)


def _patch(api: KubeApi, request: Request, place: Place) -> tuple[int, Object]:
    query, item = request.query, request.body
    if request.headers.get("Content-Type") != APPLY or request.method != "PATCH":
        raise Refusal(415, "UnsupportedMediaType", (
            "the body of the request was in an unknown format - accepted media types include: "
            f"application/json-patch+json, application/merge-patch+json, {APPLY}"))  # fmt: skip
    if not query.get("fieldManager"):
        raise Refusal(422, "Invalid", (
            'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for '
            "apply patch"))  # fmt: skip
    if query.get("dryRun") not in (None, "All") or query.get("fieldValidation") != "Strict":
        raise Refusal(400, "BadRequest", f"unexpected query {query}")
    assert item is not None
    metadata = item["metadata"]
    if metadata.get("managedFields"):
        raise Refusal(400, "BadRequest", "metadata.managedFields must be nil")
    if (item["kind"], metadata["name"], metadata.get("namespace", "")) != (
        place.kind, place.name, place.namespace,
    ):  # fmt: skip
        raise Refusal(
            400, "BadRequest", "the name of the object does not match the name on the URL"
        )
    result, new = api.objects.apply(
        item, query["fieldManager"], force=query.get("force") == "true",
        dry_run=query.get("dryRun") == "All",
    )  # fmt: skip
    return 201 if new else 200, result


def _selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = pair.partition("=")
        if labels.get(key) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = pair.partition("=")
        value: Any = item
        for part in key.split("."):
            value = value.get(part, {})
        if value != value:
            return False
    return True


def _log(api: KubeApi, request: Request, place: Place) -> Iterator[bytes]:
    assert place.name is not None
    pod = api.objects.get("Pod", place.namespace, place.name)
    container = request.query["container"]
    if container not in [item["name"] for item in pod["spec"]["containers"]]:
        raise Refusal(400, "BadRequest", f"container {container} is not valid for pod {place.name}")
    return _log_lines(api, request, place.name)


def _log_lines(api: KubeApi, request: Request, pod: str) -> Iterator[bytes]:
    lines = api.logs.get(pod, [])
    since = request.query.get("sinceTime", "")[:19]  # whole seconds, as the kubelet takes it
    first = len(lines) - int(request.query.get("tailLines", len(lines)))
    while True:
        for line in lines[max(0, first) :]:
            if line[:19] >= since:
                yield (line + "\n").encode()
        first = len(lines)
        if request.query.get("follow") != "true" or pod not in api.open_logs:
            return
        if api.stopping.wait(0.05):
            return
        lines = api.logs[pod]

"""Every port of a started Ray cluster, and of a run at work, asked without the token.

Two things answer by Ray's own documentation: liveness, and figures for Prometheus (read-only).
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.processes import MARK, kill_marked, marked
from tests.support.ray_cluster import TOKEN
from tests.support.tiny_runs import (
    aalnet_command,
    command_environment,
    tiny_values,
    write_config,
    write_data,
)

pytestmark = pytest.mark.timeout(240)

PATHS = (
    "/api/version", "/api/jobs/", "/api/job_agent/jobs/", "/api/actors", "/api/v0/nodes",
    "/api/v0/workers", "/nodes?view=summary", "/logs", "/api/v0/logs/file?filename=raylet.out",
    "/api/serve/applications/", "/api/packages/gcs/_ray_pkg_0.zip", "/worker/traceback?pid=1",
    "/api/cluster_status", "/metrics", "/healthz", "/timezone", "/static/../api/version",
    "/api/prometheus/sd", "/api/authenticate", "/get_or_create_runtime_env", "/log_proxy?url=x",
)  # fmt: skip
LIVENESS = ("/", "/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz")
METHODS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "ray.rpc.InternalKVGcsService/InternalKVKeys", "ray.rpc.InternalKVGcsService/InternalKVPut",
    "ray.rpc.ActorInfoGcsService/GetAllActorInfo", "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.NodeManagerService/RequestWorkerLease", "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats", "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.RayletDriver/ClusterInfo", "ray.rpc.RayletDriver/KVGet",
    "ray.rpc.ReporterService/GetTraceback", "ray.rpc.LogService/ListLogs",
    "ray.rpc.autoscaler.AutoscalerStateService/GetClusterStatus",
)  # fmt: skip
ALIVE = "grpc.health.v1.Health/Check"
CLOSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED,
          grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # fmt: skip
WRONG = "wrong-" + "3" * 40
# 127.0.0.1 and ::1, the former also as IPv6 wraps it
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@dataclass(frozen=True)
class Port:
    """One that something listens on."""

    process: str
    addresses: frozenset[str]  # of IPv4 and IPv6, as the kernel writes them


@dataclass(frozen=True)
class Scanned:
    """A cluster under way."""

    token: str
    ports: dict[int, Port]
    http: tuple[int, ...]  # of those, the ones that speak it; the others only wait
    grpc: tuple[int, ...]  # of those, the ones that answer to it, whoever asks

    def of(self, process: str) -> list[int]:
        return [port for port, found in self.ports.items() if found.process == process]

    @property
    def dashboard(self) -> int:
        pages = [p for p in self.http if get(p, "/", {})[1].startswith(b"<!doctype html")]
        assert len(pages) == 1
        return pages[0]


@contextlib.contextmanager
def training(folder: Path) -> Iterator[tuple[str, str]]:
    """By `aalnet train`, with two workers at work."""
    write_data(folder)
    values = tiny_values(folder, {"run.images": 40_000_000, "run.workers": 2})
    config, mark = write_config(folder / "r.yaml", values), uuid.uuid4().hex
    run = Run(FolderStore(folder / "s"), "r")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            aalnet_command("train", config, "--storage", folder / "s"), cwd=folder,
            env={**command_environment(), "HOME": str(folder), MARK: mark},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while "train" not in [record["kind"] for record in run.records()]:
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.5)
        yield mark, (folder / ".ray" / "auth_token").read_text(encoding="ascii").strip()
    finally:
        kill_marked(mark)
        process.wait()


@pytest.fixture(scope="module", params=["cluster", "training"])
def scanned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scanned]:
    """The cluster, as docs/cluster.md starts one, and what `aalnet train` starts by itself."""
    if request.param == "cluster":
        running = request.getfixturevalue("cluster")
        yield scan(str(running.port), TOKEN)
        return
    with training(tmp_path_factory.mktemp("ports")) as (mark, token):
        yield scan(mark, token)


def scan(mark: str, token: str) -> Scanned:
    """Look at a cluster once no more ports come."""
    ports, since_s, end_s = listening(mark), time.monotonic(), time.monotonic() + 60
    while time.monotonic() - since_s < 4 and time.monotonic() < end_s:
        time.sleep(0.5)
        now = listening(mark)
        if now != ports:
            ports, since_s = now, time.monotonic()
    statuses = at_once(lambda port: get(port, "/", {})[0], ports)
    codes = at_once(lambda port: call(port, METHODS[0], token), ports)
    silent = grpc.StatusCode.DEADLINE_EXCEEDED
    return Scanned(
        token, ports,
        http=tuple(port for port, status in statuses if status),
        grpc=tuple(port for port, code in codes if code != silent),
    )  # fmt: skip


def at_once(ask: Callable[[Any], Any], things: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each thing with its answer; most of the time is waiting for ports that never answer."""
    each = list(things)
    with ThreadPoolExecutor(32) as pool:
        return list(zip(each, pool.map(ask, each), strict=True))


def listening(mark: str) -> dict[int, Port]:
    """TCP ports of the marked processes, from the kernel's own tables."""
    owners = {}
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    owners[os.readlink(file)] = name
    found: dict[int, Port] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            owner = owners.get(f"socket:[{rest[5]}]")
            if state == "0A" and owner is not None:
                address, _, port = local.rpartition(":")
                before = found[int(port, 16)].addresses if int(port, 16) in found else frozenset()
                found[int(port, 16)] = Port(owner, before | {address})
    return dict(sorted(found.items()))


def get(port: int, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body; 0 where the port does not speak HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def call(port: int, method: str, token: str | None = None) -> grpc.StatusCode:
    """How an empty request ends."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/{method}")(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            assert isinstance(code, grpc.StatusCode)
            return code
    return grpc.StatusCode.OK


def is_figures(body: bytes) -> bool:
    """Prometheus's text format and nothing else."""
    lines = [line for line in body.splitlines() if line]
    return all(line.startswith(b"#") or b" " in line for line in lines) and b"# TYPE" in body


def test_the_scan_sees_the_cluster(scanned: Scanned) -> None:
    assert scanned.of("raylet")
    assert scanned.of("ray::DashboardA")  # as much as the kernel keeps of the agent's name
    with_token = {"Authorization": f"Bearer {scanned.token}"}
    assert get(scanned.dashboard, "/api/version", with_token)[0] == 200
    codes = [call(port, METHODS[0], scanned.token) for port in scanned.of("gcs_server")]
    assert codes == [grpc.StatusCode.OK]


def test_only_this_machine_reaches_it(scanned: Scanned) -> None:
    """But for the store of torch's process group: it has no setting for it (docs/cluster.md)."""
    open_ones = [
        found.process for found in scanned.ports.values() if not found.addresses <= LOOPBACK
    ]
    assert open_ones in ([], ["ray::RayTrainWo"])


@pytest.mark.parametrize("token", [None, WRONG])
def test_http_answers_nothing_but_liveness(scanned: Scanned, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    places = itertools.product(scanned.http, PATHS)
    answered = {
        f"{scanned.ports[port].process}:{port}{path}": (status, body[:80])
        for (port, path), (status, body) in at_once(lambda place: get(*place, headers), places)
        if status not in {0, 401, 403, 404, 405} and not is_figures(body)
    }
    assert answered == {}


def test_liveness_is_there_for_probes(scanned: Scanned) -> None:
    dashboard = scanned.dashboard
    assert get(dashboard, "/api/gcs_healthz", {}) == (200, b"success")
    for port in scanned.http:
        for path in LIVENESS:
            status, body = get(port, path, {})
            page = (port, path) == (dashboard, "/")
            said_no_more = status in {0, 404} or is_figures(body) or body == b"success" or page
            assert said_no_more or status in {401, 403}, (scanned.ports[port], path, body[:80])
            assert scanned.token.encode() not in body
    assert [call(port, ALIVE) for port in scanned.of("gcs_server")] == [grpc.StatusCode.OK]


def test_figures_are_on_known_ports_only(scanned: Scanned) -> None:
    """Ray's three Prometheus endpoints of a head, and a run's own (docs/cluster.md)."""
    bodies = {port: get(port, "/metrics", {})[1] for port in scanned.http}
    open_ones = {port: body for port, body in bodies.items() if is_figures(body)}
    assert len(open_ones) <= 4, {port: scanned.ports[port] for port in open_ones}
    assert not any(scanned.token.encode() in body for body in open_ones.values())


@pytest.mark.parametrize("token", [None, WRONG])
def test_grpc_answers_nothing(scanned: Scanned, token: str | None) -> None:
    places = itertools.product(scanned.grpc, METHODS)
    answered = {
        f"{scanned.ports[port].process}:{port}/{method}": code
        for (port, method), code in at_once(lambda place: call(*place, token), places)
        if code not in CLOSED
    }
    assert answered == {}


def test_nobody_answers_to_noise(scanned: Scanned) -> None:
    said = at_once(answer_to_noise, scanned.ports)
    assert [port for port, text in said if scanned.token.encode() in text] == []


def answer_to_noise(port: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 3) as it:
        it.settimeout(1)
        it.sendall(b"PING\r\n\r\n")
        return it.recv(4096)
    return b""

"""Small models, stores and running endpoints that the tests of the endpoint share."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from aalnet.networks import DataSpec, Generator
from aalnet.state import TrainState
from cluster.runs.checkpoint import Checkpoint, save
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import Store
from deploy.endpoint.app import Application
from deploy.endpoint.execution import Graph, build_graph
from deploy.endpoint.follow import ModelSource
from deploy.endpoint.security import Keys
from deploy.endpoint.service import Service
from deploy.endpoint.settings import EndpointSettings
from tests.support.tiny_runs import (
    aalnet_command,
    command_environment,
    encoded,
    noise_picture,
    tiny_settings,
)

LABELS = ("a", "b", "c")
SPEC = DataSpec(LABELS, 3, 3)
QUICK = EndpointSettings(batch_samples=8, poll_s=0.1, notice_s=0.5)
Client = httpx.AsyncClient


def make_checkpoint(
    store: Store, run_name: str, images: int = 0, *, seed: int = 0,
    spec: DataSpec = SPEC, change: Callable[[TrainState], None] | None = None,
    overrides: dict[str, Any] | None = None,
) -> Checkpoint:  # fmt: skip
    """A checkpoint of a generator that was never trained, whose samples differ by the seed."""
    settings = tiny_settings(Path("data"), {"run.seed": seed, **(overrides or {})})
    state = TrainState(settings, spec, torch.device("cpu"))
    state.images_seen = images
    for network in (state.generator, state.ema):
        source = torch.Generator().manual_seed(seed)
        torch.nn.init.normal_(network.output.weight, generator=source)
        torch.nn.init.normal_(network.moments.weight, std=0.3, generator=source)
    if change is not None:
        change(state)
    run = Run(store, run_name)
    run.claim(settings)
    save(run, state, {"kid_unpaired_lite0": 0.5})
    return Checkpoint(run, images)


def make_nan(state: TrainState) -> None:
    """A model that draws what is not finite."""
    bias = state.ema.output.bias
    assert bias is not None
    torch.nn.init.constant_(bias, float("nan"))


def corrupt(found: Checkpoint) -> None:
    """Flip one bit of its weights."""
    blob = found.manifest().blobs["ema"]
    key = found.key(blob.name)
    data = bytearray(found.run.store.read(key))
    data[-5] ^= 1
    found.run.store.write(key, bytes(data))


def folder_to_serve(folder: Path) -> Path:
    """The folder, with a store that has one run, `tiny`, and a picture to ask about."""
    make_checkpoint(FolderStore(folder / "store"), "tiny")
    (folder / "image.png").write_bytes(png_of())
    return folder


def service_of(
    store: FolderStore, name: str = "tiny", settings: EndpointSettings = QUICK, *,
    keys: Path | None = None, promoted: bool = False,
) -> Service:  # fmt: skip
    """The service of a store's run, or (`promoted`) of a model's name."""
    return Service(ModelSource(store, name, promoted=promoted), settings, Keys(keys))


GRAPHS: dict[str, Graph] = {}


def remembered_graph(
    generator: Generator, spec: DataSpec, size_px: int, settings: EndpointSettings
) -> Graph:
    """`build_graph`, which takes seconds, once for each architecture and settings."""
    key = f"{generator} {spec} {size_px} {settings}"
    if key not in GRAPHS:
        GRAPHS[key] = build_graph(generator, spec, size_px, settings)
    return GRAPHS[key]


@contextlib.asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[tuple[Client, Application]]:
    """A client that calls the application without a socket, while its threads run."""
    application = Application(service)
    service.start()
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            yield client, application
    finally:
        service.close()


def png_of(seed: int = 0, size_px: int = 32, channels: int = 3) -> bytes:
    """A PNG file of noise."""
    return encoded(noise_picture(seed, size_px, channels))


def form(image: bytes | None = None, **fields: Any) -> dict[str, Any]:
    """The arguments of a multipart POST."""
    values = {"label": "a", "num_samples": 2, "seed": 1, **fields}
    return {
        "files": {"image": ("image", png_of() if image is None else image)},
        "data": {name: str(value) for name, value in values.items() if value is not None},
    }


def pictures(answer: httpx.Response) -> list[Image.Image]:
    """The samples of an answer in JSON."""
    return [Image.open(io.BytesIO(base64.b64decode(s))) for s in answer.json()["samples"]]


def free_port() -> int:
    """A port nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """An `aalnet serve` process."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = aalnet_command("serve", *arguments, "--port", str(self.port))
        self.log = cwd / f"serve-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=command_environment(), stderr=log, stdout=log
            )

    def wait(self, timeout_s: float = 60) -> None:
        """Until it is ready."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def resident_mib(self) -> float:
        """Its memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; 0 where it is not there yet."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(name)} ([0-9.e+-]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextlib.contextmanager
def served(*arguments: str | Path, cwd: Path) -> Iterator[Served]:
    """An endpoint process, ready; killed with the block."""
    endpoint = Served(*arguments, cwd=cwd)
    try:
        endpoint.wait()
        yield endpoint
    finally:
        if endpoint.process.poll() is None:
            os.kill(endpoint.process.pid, signal.SIGKILL)
        endpoint.process.wait()


@contextlib.contextmanager
def in_background(work: Callable[[threading.Event], None], threads: int = 1) -> Iterator[None]:
    """Run `work` in threads until the block ends; their first error is the block's."""
    stop, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001 (handed to the test's own thread)
            errors.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()
    if errors:
        raise errors[0]


def until(holds: Callable[[], Any], timeout_s: float = 30) -> None:
    """Wait until it holds."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)

"""What is done to runs, campaigns and endpoints so that alerts fire; see tests/proof/alerts.py.

A scenario does harm and gives the alert that must follow, with what was done in words; then more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx

from cluster.runs.promotions import promote
from cluster.storage.folder import FolderStore
from tests.support.endpoint_models import form, in_background, make_checkpoint, make_nan, png_of
from tests.support.fault_proxy import Rule, fault_proxy
from tests.support.processes import descendants, kill, workers_of
from tests.support.prometheus_server import announced, environment_with, value, wait_for
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_runs import aalnet_command, tiny_values, write_config, write_data

UP_S = 300.0  # until a run steps, on a machine that others use too
ENDLESS = {"run.images": 10_000_000, "run.log_every_images": 40}
LARGE = {"network.widths": [64, 128]}  # a model that takes its time
Harm = Generator[tuple[str, str], None, None]


@dataclass(frozen=True)
class Stage:
    """Where a scenario's things lie."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @cached_property
    def data(self) -> Path:
        return write_data(self.folder / "data")

    def wait_for(self, what: str, found: Callable[[], Any]) -> Any:
        """Wait for it, with patience."""
        return wait_for(what, found, UP_S)

    @contextlib.contextmanager
    def aalnet(self, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """One of our commands in the background, killed with all that it started at the end."""
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                aalnet_command(*arguments), cwd=self.folder, stdout=log, stderr=log,
                env=environment_with(self.cache) | {"RAY_worker_niceness": "0"},
            )  # fmt: skip
        try:
            yield process
        finally:
            kill_all(process)

    @contextlib.contextmanager
    def training(
        self, url: str, run: str, overrides: dict[str, Any], *more: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A run that steps."""
        values = tiny_values(self.data, {**ENDLESS, **overrides})
        config = write_config(self.folder / f"{run}.yaml", values)
        with self.aalnet("train", config, "--run", run, "--storage", self.store, *more) as driver:
            self.wait_for("steps", lambda: value(url, f"aalnet_steps_total{{run='{run}'}} > 0"))
            yield driver


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and everything below it."""
    kill([process.pid, *descendants(process.pid)])
    process.wait()


def workers(stage: Stage, url: str) -> Harm:
    """Ray's workers stop, then die again and again."""
    steps = "changes(aalnet_steps_total{run='workers'}[5s]) > 0"
    restarts = "sum(max by (cause) (aalnet_restarts_total{run='workers'}))"
    with stage.training(url, "workers", {"run.checkpoint_every_images": 40},
                        "--workers", "2") as driver:  # fmt: skip
        for pid in workers_of(driver.pid):
            os.kill(pid, signal.SIGSTOP)
        yield "AALNetTrainingStalled", "SIGSTOP to both Ray workers"
        for restart in range(1, 4):
            for pid in workers_of(driver.pid):
                os.kill(pid, signal.SIGKILL)
            stepping = partial(value, url, f"{restarts} >= {restart} and on () ({steps})")
            stage.wait_for(f"steps after restart {restart}", stepping)
        yield "AALNetRestartLoop", "SIGKILL to both Ray workers, three times"


def diverging(stage: Stage, url: str) -> Harm:
    """A learning rate that ends in a NaN."""
    wild = {"optimizer.lr": 1e30, "optimizer.warmup_images": 0}
    config = write_config(stage.folder / "wild.yaml", tiny_values(stage.data, {**ENDLESS, **wild}))
    command = ("train", config, "--run", "diverging", "--storage", stage.store)
    with stage.aalnet(*command):
        yield "AALNetNonFinite", "`optimizer.lr=1e30`"
        yield "AALNetRunFailed", "the same run; it ended by itself"


def wasteful(stage: Stage, url: str) -> Harm:
    """Evaluations that take longer than the training between them."""
    values = {"run.checkpoint_every_images": 4, "run.log_every_images": 4,
              "evaluation.samples": 64}  # fmt: skip
    with stage.training(url, "wasteful", values):
        yield "AALNetGoodputLow", "64 samples a condition evaluated after every step"


def sick(stage: Stage, url: str) -> Harm:
    """A generator that neither fights D nor heeds its noise."""
    values = {
        "run.images": 10_000, "objective.lambda": 0.0, "objective.eta": 0.0, "objective.beta": 0.0,
        "optimizer.warmup_images": 0, "optimizer.lr": 3e-3, "run.log_every_images": 4,
        "run.checkpoint_every_images": 4,
    }  # fmt: skip
    with stage.training(url, "sick", values):
        yield "AALNetDiscriminatorWinning", "`lambda=0`: nothing pulls G towards fooling D"
        yield "AALNetDiversityCollapsed", "`eta=0 lambda=0 beta=0`: likelihood alone"


def storage(stage: Stage, url: str) -> Harm:
    """An S3 server that is away."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(s3_server(stage.folder / "s3"))
        proxy = stack.enter_context(fault_proxy(server.endpoint))
        variables = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        stack.enter_context(environment(variables))
        config = write_config(
            stage.folder / "away.yaml",
            tiny_values(stage.data, {**ENDLESS, "run.checkpoint_every_images": 40}),
        )
        uri = f"s3://{server.bucket}/runs"
        stack.enter_context(stage.aalnet("train", config, "--run", "away", "--storage", uri))
        stage.wait_for("a checkpoint", lambda: value(url, "aalnet_checkpoints_total > 0"))
        proxy.rule = Rule(down=True)
        yield "AALNetUploadFailing", "every connection to the S3 server refused"
        yield "AALNetCheckpointTooOld", "the same outage"


def campaign(stage: Stage, url: str) -> Harm:
    """A campaign whose driver is killed, and nobody starts again."""
    search = {"base": tiny_values(stage.data, {"run.checkpoint_every_images": 40}),
              "budget": {"trials": 100, "images": 160}, "trials_at_once": 1,
              "repeats": {"top": 0}}  # fmt: skip
    config = write_config(stage.folder / "search.yaml", search)
    command = ("tune", config, "--name", "killed", "--storage", stage.store)
    with stage.aalnet(*command) as driver:
        stage.wait_for("a trial", lambda: value(url, "aalnet_campaign_best_value"))
        kill_all(driver)
        yield "AALNetCampaignStuck", "SIGKILL to the campaign's driver and its trials"


@contextlib.contextmanager
def serving(
    stage: Stage, *settings: str, overrides: dict[str, Any] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An endpoint that follows the model `m`, made with `overrides`, and its address."""
    store = FolderStore(stage.store)
    promote(store, make_checkpoint(store, "tiny", 100, overrides=overrides), "m")
    options = [word for setting in settings for word in ("--set", setting)]
    command = ("serve", "--model", "m", "--storage", stage.store, "--port", "0", *options)
    with stage.aalnet(*command) as process:
        yield process, stage.wait_for("it", lambda: announced(stage.cache, "endpoint/"))


@contextlib.contextmanager
def load(address: str, clients: int, num_samples: int) -> Iterator[None]:
    """Requests without end."""
    picture = png_of()

    def ask(done: threading.Event) -> None:
        while not done.is_set():
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(f"{address}/v1/samples", timeout=30,
                           **form(picture, num_samples=num_samples))  # fmt: skip

    with in_background(ask, clients):
        yield


def overload(stage: Stage, url: str) -> Harm:
    """More clients than a small queue holds."""
    with (
        serving(stage, "queue_samples=16", "batch_samples=8") as (_, address),
        load(address, clients=8, num_samples=8),
    ):
        yield "AALNetEndpointOverloaded", "8 clients, each 8 samples, on a queue of 16"


def slow(stage: Stage, url: str) -> Harm:
    """A queue that is longer than a second."""
    with (
        serving(stage, "queue_samples=8192", overrides=LARGE) as (_, address),
        load(address, clients=16, num_samples=64),
    ):
        yield (
            "AALNetEndpointSlow",
            "16 clients, each 64 samples of a larger model, on a queue of 8192",
        )


def errors(stage: Stage, url: str) -> Harm:
    """Requests that take longer than they may."""
    with (
        serving(stage, "queue_samples=8192", "request_timeout_s=0.2", overrides=LARGE) as (
            _,
            address,
        ),
        load(address, clients=16, num_samples=64),
    ):
        yield "AALNetEndpointErrors", "the same load, with `request_timeout_s=0.2`"


def outdated(stage: Stage, url: str) -> Harm:
    """A promotion of a model that is not finite."""
    with serving(stage):
        store = FolderStore(stage.store)
        promote(store, make_checkpoint(store, "bad", 200, change=make_nan), "m")
        yield "AALNetModelOutdated", "a checkpoint with NaN weights promoted"


SCENARIOS: dict[str, tuple[Callable[[Stage, str], Harm], int]] = {  # seconds for a minute
    "diverging": (diverging, 1),
    "overload": (overload, 1),
    "outdated": (outdated, 1),
    "slow": (slow, 1),
    "errors": (errors, 1),
    "storage": (storage, 15),
    "campaign": (campaign, 1),
    "sick": (sick, 1),
    "wasteful": (wasteful, 1),
    "workers": (workers, 15),
}

"""Real figures in a real Prometheus: a two-worker run, an endpoint under load, a campaign.

One of the run's workers was killed, so there is a restart to see.

`live_prometheus` is what tests of dashboards ask; it takes about a minute and a half to be ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deploy.endpoint.client import EndpointClient, EndpointRefused
from tests.support.endpoint_models import in_background
from tests.support.processes import workers_of
from tests.support.prometheus_server import (
    announced,
    environment_with,
    prometheus_server,
    value,
    wait_for,
)
from tests.support.tiny_runs import (
    aalnet_command,
    encoded,
    noise_picture,
    noise_rows,
    tiny_values,
    write_config,
    write_data,
    write_pairs,
)

RUN, MODEL, CAMPAIGN = "live", "live-model", "live-campaign"
LIVE: dict[str, Any] = {
    "run.images": 10_000_000,
    "run.checkpoint_every_images": 200,
    "run.evaluate_every_images": 400,
    "run.log_every_images": 40,
    "evaluation.max_images": 12,
}
LONG_S = 240.0  # for what takes half a minute on an idle machine
FAIR = {"RAY_worker_niceness": "0"}  # else the endpoint's load leaves Ray's workers no time
TRIALS = {
    "budget": {"trials": 10_000, "images": 160, "seconds": 86_400.0},
    "trials_at_once": 1,
    "repeats": {"top": 0},
}
TRIAL = {"run.checkpoint_every_images": 40, "run.log_every_images": 40}


@contextlib.contextmanager
def live_prometheus(folder: Path) -> Iterator[str]:
    """The address of a Prometheus that has been scraping all three for a while, and still does."""
    cache, store = folder / "cache", folder / "store"
    data = write_data(folder / "data")
    rows = noise_rows(12)
    for i, row in enumerate(rows):  # a grey of its own for each label, so that one can be followed
        row["target"] = encoded(Image.new("RGB", (32, 32), (80 * (i % 3),) * 3))
    write_pairs(data / "test.parquet", rows)
    config = write_config(folder / "live.yaml", tiny_values(data, LIVE))
    search = write_config(folder / "search.yaml", {"base": tiny_values(data, TRIAL), **TRIALS})
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(prometheus_server(cache))
        train = ("train", config, "--run", RUN, "--storage", store, "--workers", "2")
        driver = stack.enter_context(_command(train, cache, folder))
        evaluated = f"aalnet_evaluation_at_images{{run='{RUN}'}}"
        wait_for("an evaluation", lambda: value(base, evaluated), LONG_S)
        os.kill(wait_for("a worker", lambda: workers_of(driver.pid))[0], signal.SIGKILL)
        tune = ("tune", search, "--name", CAMPAIGN, "--storage", store)
        stack.enter_context(_command(tune, cache, folder))
        wait_for("a trial", lambda: value(base, "aalnet_campaign_best_value"), LONG_S)
        promote = aalnet_command("promote", RUN, "--model", MODEL, "--storage", store)
        subprocess.run(promote, check=True, capture_output=True, env=environment_with(cache))
        serve = ("serve", "--model", MODEL, "--storage", store, "--port", "0")
        stack.enter_context(_command(serve, cache, folder))
        endpoint = wait_for("the endpoint", lambda: announced(cache, "endpoint/"), LONG_S)
        stack.enter_context(_load(endpoint))
        answered = "sum(rate(aalnet_endpoint_samples_total[30s])) > 0"
        wait_for("requests", lambda: value(base, answered), LONG_S)
        refused = "sum(rate(aalnet_endpoint_rejected_total{reason='label'}[1m])) > 0"
        wait_for("a refused one", lambda: value(base, refused), LONG_S)
        crashes = "increase(aalnet_restarts_total{cause='crash'}[5m]) > 0"
        wait_for("a restart", lambda: value(base, crashes), LONG_S)
        steps = f"rate(aalnet_steps_total{{run='{RUN}'}}[30s]) > 0"
        wait_for("steps after it", lambda: value(base, steps), LONG_S)
        wait_for("two workers", lambda: value(base, f"aalnet_workers{{run='{RUN}'}} == 2"), LONG_S)
        yield base


@contextlib.contextmanager
def _command(
    arguments: Sequence[str | Path], cache: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """An `aalnet` command in the background, ended as Kubernetes would."""
    log = folder / f"{arguments[0]}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            aalnet_command(*arguments), cwd=folder, stdout=out, stderr=subprocess.STDOUT,
            env=environment_with(cache) | FAIR,
        )  # fmt: skip
        try:
            yield process
            assert process.poll() is None, log.read_text(encoding="utf-8")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _load(endpoint: str, clients: int = 2) -> Iterator[None]:
    """Requests without end: good ones, and now and then one with an unknown label."""
    picture = encoded(noise_picture(0))

    def ask(done: threading.Event) -> None:
        client, count = EndpointClient(endpoint), 0
        while not done.wait(0.02):
            count += 1
            label = "a" if count % 20 else "no such label"
            with contextlib.suppress(EndpointRefused):
                client.sample(picture, label, num_samples=2, seed=count)

    with in_background(ask, clients):
        yield

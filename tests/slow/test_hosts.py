"""Three hosts, one of them cut off and later back: the run goes on, on the same path."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from tests.support import hosts
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_runs import (
    aalnet_command,
    command_environment,
    tiny_values,
    write_config,
    write_data,
)

REASON = hosts.missing()
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

SLOW_STEPS = {  # float64 is slow on a CPU, so that few steps span a cut cable and its repair
    "data.batch_images": 6, "network.widths": [8, 16], "optimizer.lr": 1e-5,
    "run.precision": "float64", "run.images": 6_000, "run.checkpoint_every_images": 60,
    "run.log_every_images": 6, "run.keep_last": 100,
}  # fmt: skip
TOLERANCE = 1e-7  # of parameters in float64; 20 steps are held to 1e-9 elsewhere
QUICK_DETECTION = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
LONGEST_S = 480.0


def parameters(run: Run, images: int) -> torch.Tensor:
    (checkpoint,) = [each for each in checkpoints(run) if each.images == images]
    tensors = checkpoint.tensors(checkpoint.manifest().blobs["training"])
    names = sorted(name for name in tensors if "optimizer" not in name)
    return torch.cat([tensors[name].double().flatten() for name in names])


def wait_for(what: str, happened: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    end_s = time.monotonic() + LONGEST_S
    while not happened():
        assert time.monotonic() < end_s, f"{what} did not happen"
        assert process.poll() is None, f"training ended before {what}"
        time.sleep(0.5)


def undisturbed(folder: Path, images: int) -> torch.Tensor:
    """The parameters of the same run after so many images, trained by one process."""
    run = Run(FolderStore(folder / "alone"), "run")
    config = write_config(folder / "alone.yaml", tiny_values(folder, SLOW_STEPS))
    process = subprocess.Popen(
        aalnet_command("train", config, "--run", run.name, "--storage", folder / "alone"),
        env=command_environment(), cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the same", lambda: images in run.checkpoint_images(), process)
    finally:
        process.kill()
        process.wait()
    return parameters(run, images)


def test_a_host_that_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    write_data(tmp_path, train_rows=60)
    config = write_config(
        tmp_path / "hosts.yaml", tiny_values(tmp_path, SLOW_STEPS | {"run.workers": "1:3"})
    )
    with (
        hosts.hosts(3) as lan,
        s3_server(tmp_path / "s3", address=hosts.OUTSIDE) as server,
        environment(server.environment),
    ):
        for host in (1, 2, 3):
            lan.start_ray(host, QUICK_DETECTION)
        storage = f"s3://{server.bucket}/hosts"
        run = Run(open_store(storage), "run")
        arguments = ("--run", "run", "--storage", storage, "--address", hosts.HEAD)
        process = subprocess.Popen(
            lan.command(1, *aalnet_command("train", config, *arguments)),
            env=command_environment() | lan.environment | server.environment,
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

        def of(kind: str) -> list[Record]:
            return [record for record in run.records() if record["kind"] == kind]

        def steps_since_the_start() -> bool:
            return any(train["time_s"] > of("start")[-1]["time_s"] for train in of("train"))

        try:
            wait_for("the first steps", lambda: len(of("train")) >= 4, process)
            wait_for("three workers", lambda: of("start")[-1]["workers"] == 3, process)
            lan.pull_cable(3)
            wait_for("a start with two", lambda: of("start")[-1]["workers"] == 2, process)
            wait_for("steps with two", steps_since_the_start, process)
            lan.plug_in(3)
            lan.kill(3)  # as a machine that comes back: a new Ray node
            lan.start_ray(3, QUICK_DETECTION)
            wait_for("a start with three", lambda: of("start")[-1]["workers"] == 3, process)
            at = of("start")[-1]["images"] // 60 * 60 + 60
            wait_for("a checkpoint by three", lambda: at in run.checkpoint_images(), process)
            process.terminate()
            told, _ = process.communicate(timeout=LONGEST_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 143, told
        assert run.status() == "stopped"
        causes = [start.get("cause") for start in of("start")]
        assert "resize" in causes, causes
        a, b = parameters(run, at), undisturbed(tmp_path, at)
    assert float((a - b).norm() / b.norm()) <= TOLERANCE

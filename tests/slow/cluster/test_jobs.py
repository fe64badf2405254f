"""`aalnet submit` on a real local Ray cluster with token authentication."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.ray_cluster import RayCluster
from tests.support.ray_jobs import Submitted
from tests.support.tiny_runs import aalnet_command, command_environment


def ray(cluster: RayCluster, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *arguments], cwd=cwd, env=cluster.environment, text=True,
        capture_output=True, timeout=100, check=False,
    )  # fmt: skip


def training(run: str, storage: Path, workers: int) -> list[str]:
    """A run without end."""
    return ["train", "tiny.yaml", "--run", run, "--storage", str(storage),
            "--workers", str(workers)]  # fmt: skip


@pytest.mark.timeout(400)
def test_a_job_is_killed_resumed_doubled_and_stopped(
    cluster: RayCluster, checkout: Path, tmp_path: Path
) -> None:
    run = Run(FolderStore(tmp_path / "s"), "mine")
    command = training("mine", tmp_path / "s", workers=1)

    first = Submitted(cluster, checkout, tmp_path / "1.log", *command)
    first.wait_for(lambda: len(run.checkpoint_images()) > 0)
    newest = max(run.checkpoint_images())
    holder = json.loads(run.store.read(run.store.keys(run.key("lease/"))[-1]))
    assert holder["job"] == first.job
    os.kill(holder["pid"], signal.SIGKILL)
    assert first.ends() == 137, first.told
    assert "images 48/" in first.told

    second = Submitted(cluster, checkout, tmp_path / "2.log", *command)
    second.wait_for(lambda: "going on from" in second.told)
    assert f"run `mine` is taken over from process {holder['pid']}" in second.told
    assert f"(Ray job {first.job})" in second.told
    at = re.search(r"going on from ([\d,]+)", second.told)
    assert at
    assert int(at.group(1).replace(",", "")) >= newest

    third = Submitted(cluster, checkout, tmp_path / "3.log", *command)
    assert third.ends() == 2
    assert "error: run `mine` is being worked on by process " in third.told
    assert second.job in third.told

    second.wait_for(lambda: run.records()[-1]["kind"] == "train")
    stopped = ray(cluster, "stop", second.job, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert second.ends() == 143, second.told
    assert run.status() == "stopped"
    assert run.records()[-1]["images"] == max(run.checkpoint_images())
    assert "SIGTERM: stopping after a checkpoint" in second.told

    figures = Submitted(
        cluster, checkout, tmp_path / "4.log", "evaluate", "mine", "--storage", str(tmp_path / "s"),
        "-k", "2",
    )  # fmt: skip
    assert figures.ends() == 0, figures.told
    assert "kid_unpaired_lite0" in figures.told


@pytest.mark.timeout(400)
def test_ctrl_c_detaches_or_stops(cluster: RayCluster, checkout: Path, tmp_path: Path) -> None:
    run = Run(FolderStore(tmp_path / "s"), "mine")
    command = training("mine", tmp_path / "s", workers=0)
    first = Submitted(cluster, checkout, tmp_path / "1.log", *command)
    first.wait_for(lambda: "images 48/" in first.told)
    first.process.send_signal(signal.SIGINT)
    assert first.ends() == 130
    assert f"detached; `{first.job}` goes on" in first.told
    seen = run.records()[-1]["images"]
    while run.records()[-1]["images"] <= seen:  # it does
        time.sleep(0.2)
    assert ray(cluster, "stop", first.job, cwd=tmp_path).returncode == 0

    ours, theirs = pty.openpty()
    again = subprocess.Popen(
        aalnet_command("submit", *command), cwd=checkout, env=cluster.environment,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    told = read_until(ours, "start at")
    again.send_signal(signal.SIGINT)
    told += read_until(ours, "[c]ontinue?")
    os.write(ours, b"s\n")
    told += read_until(ours, None)
    assert again.wait(60) == 143, told
    os.close(ours)
    assert "asked to stop: it saves a checkpoint first" in told
    assert run.status() == "stopped"


def read_until(terminal: int, text: str | None, limit_s: float = 150.0) -> str:
    """What a terminal shows until `text`, or until nobody writes to it any more."""
    told, end_s = "", time.monotonic() + limit_s
    while text is None or text not in told:
        assert time.monotonic() < end_s, told
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                told += os.read(terminal, 4096).decode(errors="replace")
            except OSError:
                assert text is None, told
                break
    return told


@pytest.mark.timeout(400)
def test_rays_own_command_does_as_well(cluster: RayCluster, checkout: Path, tmp_path: Path) -> None:
    command = [
        "python", "-m", "aalnet", "train", "configs/demo.yaml", "--run", "own",
        "--storage", "runs", "--workers", "1", "--set", "run.images=96",
        "--set", "evaluation.max_images=8",
    ]  # fmt: skip
    done = ray(cluster, "submit", "--working-dir", ".", "--", *command, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at 96/96" in done.stdout
    assert "Ray job's own folder" in done.stdout


@pytest.mark.parametrize("token", [None, "wrong-" + "2" * 40])
def test_the_token(cluster: RayCluster, checkout: Path, tmp_path: Path, token: str | None) -> None:
    given = {} if token is None else {"RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        aalnet_command("submit", "--address", cluster.dashboard, "evaluate", "x",
                       "--storage", "/tmp/anywhere"),
        cwd=checkout, env={**command_environment(), "HOME": str(tmp_path), **given},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    wants = "wants a token;" if token is None else "wants another token than the one given;"
    assert wants in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr

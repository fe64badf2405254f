"""`aalnet submit` on a real local Ray cluster with token authentication, and its checks."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aalnet.errors import AalnetError, UserError
from cluster.commands.submit import check_command, values_of
from cluster.launch import jobs
from cluster.launch.jobs import exit_code, job_environment, upload_bytes
from cluster.launch.ray_session import ClusterError
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.storage.lease import RAY_JOB, ray_job
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.tiny_campaigns import write_campaign
from tests.support.tiny_runs import (
    ROOT,
    aalnet_command,
    command_environment,
    tiny_values,
    write_config,
    write_data,
)

STORAGE = ("--storage", "/tmp/anywhere")
LONG = 4_000_000  # images that no test waits for


# Before anything is sent


def test_mistakes_are_found_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AALNET_STORAGE", raising=False)
    config = write_config(tmp_path / "c.yaml", tiny_values(tmp_path)).name
    check_command(["train", config, *STORAGE], tmp_path)
    check_command(["train", config, "--storage=s3://b/p", "--set", "run.images=64"], tmp_path)
    wrong = {
        "cannot be submitted": ["serve", "x"],
        "Ray removes": ["train", config],
        "absolute path": ["train", config, "--storage", "runs"],
        "did you mean `images`|run.images": ["train", config, *STORAGE, "--set", "run.imagez=3"],
        "lies outside": ["train", "../c.yaml", *STORAGE],
        "aalnet train --help": ["train", "--help"],
        "no file `nothing.yaml`": ["train", "nothing.yaml", *STORAGE],
        "no file `none.yaml`": ["tune", "none.yaml", *STORAGE],
    }
    for told, command in wrong.items():
        with pytest.raises(UserError, match=told):
            check_command(command, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        check_command(["train", config, *STORAGE], tmp_path / "nowhere")


def test_storage_of_the_shell_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AALNET_STORAGE", "s3://bucket/prefix")
    check_command(["evaluate", "run"], tmp_path)
    with pytest.raises(UserError, match="Ray removes"):
        check_command(["evaluate", "run", "--storage", "runs"], tmp_path)


def test_values_of_an_option() -> None:
    given = ["--set", "a=1", "x", "--set=b=2", "--settle", "c", "--set"]
    assert values_of(given, "--set") == ["a=1", "b=2", ""]


def test_what_goes_along() -> None:
    shell = {
        "AWS_ENDPOINT_URL": "http://s3", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "me",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "AALNET_STORAGE": "s3://b", "HOME": "/root",
        "AWS_CONFIG_FILE": "/root/.aws/config", "RAY_AUTH_TOKEN": "token",
    }  # fmt: skip
    assert job_environment(shell) == {
        "AWS_ENDPOINT_URL": "http://s3", "AWS_SECRET_ACCESS_KEY": "secret",
        "AALNET_STORAGE": "s3://b", "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }  # fmt: skip
    assert job_environment({"RAY_JOB_STOP_WAIT_TIME_S": "9"})["RAY_JOB_STOP_WAIT_TIME_S"] == "9"


def test_too_large_an_upload_is_told_with_its_largest_parts(tmp_path: Path) -> None:
    for name, size_mib in {"data/big": 90, "notes/two": 30, "one": 1}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size_mib * jobs.MIB)
    with pytest.raises(UserError, match=r"121 MiB to upload.*data/big \(90 MiB\), notes/two"):
        upload_bytes(tmp_path)
    (tmp_path / ".rayignore").write_text("data/\n", encoding="utf-8")
    assert upload_bytes(tmp_path) == 31 * jobs.MIB + len("data/\n")


def test_the_upload_of_this_repository_is_small() -> None:
    assert (ROOT / ".rayignore").is_file()
    assert upload_bytes(ROOT) < 20 * jobs.MIB


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("STOPPED", None, 143)],
)
def test_exit_codes(status: str, code: int | None, ends: int) -> None:
    details: Any = SimpleNamespace(status=status, driver_exit_code=code, message="")
    assert exit_code(details) == ends


def test_a_job_that_never_ran() -> None:
    details: Any = SimpleNamespace(
        status="FAILED", driver_exit_code=None, message="runtime_env setup failed:\nno space left"
    )
    with pytest.raises(ClusterError, match="did not run: no space left"):
        exit_code(details)


def test_the_name_of_the_job_that_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, name in {
        '{"metadata": {"job_submission_id": "mine"}}': "mine", "{}": "", "{": "", "[]": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(RAY_JOB, text)
        assert ray_job() == name


class Impostor(BaseHTTPRequestHandler):
    """Some other server."""

    answer = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1:1", "http://a.invalid:9"]
)
def test_no_job_server(address: str) -> None:
    with pytest.raises(AalnetError, match=r"127\.0\.0\.1|a\.invalid") as caught:
        jobs.job_client(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"<html>hello</html>"])
def test_another_server_is_no_job_server(answer: bytes) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("Other", (Impostor,), {"answer": answer}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with pytest.raises(ClusterError, match="is no Ray job server"):
            jobs.job_client(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# On a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person has checked out, and would upload."""
    made = tmp_path_factory.mktemp("checkout")
    for name in ("aalnet", "cluster", "deploy", "tuner", "configs", "data"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", made)
    return made


class Submitted:
    """`aalnet submit` under way; its output goes to a file."""

    def __init__(self, cluster: RayCluster, folder: Path, log: Path, *arguments: str) -> None:
        self.cluster, self.log = cluster, log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                aalnet_command("submit", *arguments), cwd=folder, env=cluster.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def job(self) -> str:
        found = re.search(r"^ *job  (\S+)$", self.told, re.MULTILINE)
        assert found, self.told
        return found.group(1)

    def wait_for(self, happened: Callable[[], bool], limit_s: float = 90.0) -> None:
        end_s = time.monotonic() + limit_s
        while not happened():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < end_s, self.told
            time.sleep(0.2)

    def ends(self, limit_s: float = 90.0) -> int:
        return self.process.wait(limit_s)


def ray(cluster: RayCluster, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *arguments], cwd=cwd, env=cluster.environment, text=True,
        capture_output=True, timeout=100, check=False,
    )  # fmt: skip


def training(run: str, storage: Path, images: int, pace: int = 480) -> list[str]:
    return [
        "train", "configs/demo.yaml", "--run", run, "--storage", str(storage), "--workers", "1",
        "--set", f"run.images={images}", "--set", f"run.checkpoint_every_images={pace}",
        "--set", "run.log_every_images=48", "--set", f"run.evaluate_every_images={LONG}",
        "--set", "evaluation.max_images=8",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_job_is_killed_resumed_doubled_and_stopped(
    cluster: RayCluster, folder: Path, tmp_path: Path
) -> None:
    run = Run(FolderStore(tmp_path / "s"), "mine")
    command = training("mine", tmp_path / "s", LONG)

    first = Submitted(cluster, folder, tmp_path / "1.log", *command)
    first.wait_for(lambda: len(run.checkpoint_images()) > 0)
    newest = max(run.checkpoint_images())
    holder = json.loads(run.store.read(run.store.keys(run.key("lease/"))[-1]))
    assert holder["job"] == first.job
    os.kill(holder["pid"], signal.SIGKILL)
    assert first.ends() == 137, first.told
    assert "images 48/" in first.told

    second = Submitted(cluster, folder, tmp_path / "2.log", *command)
    second.wait_for(lambda: "going on from" in second.told)
    assert f"run `mine` is taken over from process {holder['pid']}" in second.told
    assert f"(Ray job {first.job})" in second.told
    at = re.search(r"going on from ([\d,]+)", second.told)
    assert at
    assert int(at.group(1).replace(",", "")) >= newest

    third = Submitted(cluster, folder, tmp_path / "3.log", *command)
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
        cluster, folder, tmp_path / "4.log", "evaluate", "mine", "--storage", str(tmp_path / "s"),
        "-k", "2",
    )  # fmt: skip
    assert figures.ends() == 0, figures.told
    assert "kid_lite0" in figures.told


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_campaign_as_a_job(cluster: RayCluster, folder: Path, tmp_path: Path) -> None:
    write_data(folder / "small")
    write_campaign(folder / "search.yaml", Path("small"), {"budget.trials": 2})
    submitted = Submitted(
        cluster, folder, tmp_path / "log", "tune", "search.yaml", "--storage", str(tmp_path / "s")
    )
    assert submitted.ends(200) == 0, submitted.told
    assert (tmp_path / "s/campaigns/search/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ctrl_c_detaches_or_stops(cluster: RayCluster, folder: Path, tmp_path: Path) -> None:
    run = Run(FolderStore(tmp_path / "s"), "mine")
    command = training("mine", tmp_path / "s", LONG)
    first = Submitted(cluster, folder, tmp_path / "1.log", *command)
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
        aalnet_command("submit", *command), cwd=folder, env=cluster.environment,
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


def read_until(terminal: int, text: str | None, limit_s: float = 90.0) -> str:
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


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_rays_own_command_does_as_well(cluster: RayCluster, folder: Path, tmp_path: Path) -> None:
    command = ["python", "-m", "aalnet", *training("own", Path("runs"), 96, pace=96)]
    done = ray(cluster, "submit", "--working-dir", ".", "--", *command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at 96/96" in done.stdout
    assert "Ray job's own folder" in done.stdout


@pytest.mark.slow
def test_a_mistake_in_the_job_has_its_own_exit_code(
    cluster: RayCluster, folder: Path, tmp_path: Path
) -> None:
    submitted = Submitted(
        cluster, folder, tmp_path / "log", "evaluate", "nothing", "--storage", str(tmp_path)
    )
    assert submitted.ends() == 2
    assert "run `nothing` does not exist" in submitted.told


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "wrong-" + "2" * 40])
def test_the_token(cluster: RayCluster, folder: Path, tmp_path: Path, token: str | None) -> None:
    given = {} if token is None else {"RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        aalnet_command("submit", "--address", cluster.dashboard, "evaluate", "x", *STORAGE),
        cwd=folder, env={**command_environment(), "HOME": str(tmp_path), **given},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    wants = "wants a token;" if token is None else "wants another token than the one given;"
    assert wants in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr

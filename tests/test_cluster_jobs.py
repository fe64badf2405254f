"""`aalnet submit`: what it checks before it sends anything, and what it makes of an end."""

from __future__ import annotations

import threading
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
from cluster.storage.lease import RAY_JOB, ray_job
from tests.support.tiny_runs import (
    ROOT,
    tiny_values,
    write_config,
)

STORAGE = ("--storage", "/tmp/anywhere")


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


def test_settings_of_compared_models_are_read_here(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny_values(tmp_path)).name
    write_config(tmp_path / "vae.yaml", tiny_values(tmp_path, {"model": "vae"}))
    other = tmp_path / "other"
    other.mkdir()
    write_config(other / "c.yaml", tiny_values(tmp_path))
    write_config(other / "gan.yaml", tiny_values(tmp_path, {"model": "gan", "data.size_px": 64}))
    command = ["compare", config, "--equal", "seconds", "--seconds", "9", *STORAGE, "--models"]
    check_command([*command, "aalnet,vae=vae.yaml"], tmp_path)
    wrong = {
        "no file `none.yaml`": "vae=none.yaml",
        "lies outside": "vae=../vae.yaml",
        "data.size_px 64": "gan=gan.yaml",
        "`dcgan`": "dcgan",
    }
    for told, models in wrong.items():
        with pytest.raises(UserError, match=told):
            check_command([*command, models], other)


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

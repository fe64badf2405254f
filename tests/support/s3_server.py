"""A real S3 server for tests and benchmarks: SeaweedFS on loopback, with signatures checked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY, SECRET_KEY = "aalnet-tests", "aalnet-tests-secret"
READY_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server and one empty bucket."""

    endpoint: str
    bucket: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it; the usual AWS variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; each also has port + 10000 free, which SeaweedFS takes for gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 10_000))
                if port not in found:
                    found.append(port)
    return found


@contextlib.contextmanager
def s3_server(
    folder: Path, bucket: str = "aalnet", address: str = "127.0.0.1", volumes: int = 100
) -> Iterator[S3Server]:
    """A server whose data lie in `folder`; stopped by its pid at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    master, volume, filer, s3 = free_ports(4)
    command = [
        weed(), "server", f"-ip={address}", f"-ip.bind={address}", f"-dir={folder}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64", f"-volume.max={volumes}",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    server = S3Server(f"http://{address}:{s3}", bucket, process.pid)
    try:
        _make_bucket(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def with_bucket(server: S3Server, bucket: str) -> S3Server:
    """The same server with another, empty bucket."""
    client_of(server).create_bucket(Bucket=bucket)
    return replace(server, bucket=bucket)


def weed() -> str:
    """The server's program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("`weed` is not installed; run `make setup`")
    return found


def client_of(server: S3Server, secret: str = SECRET_KEY):  # type: ignore[no-untyped-def]
    """A plain boto3 client, apart from the code under test."""
    return boto3.client(
        "s3", endpoint_url=server.endpoint, aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=secret, region_name="us-east-1",
    )  # fmt: skip


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    client = client_of(server)
    end_s = time.monotonic() + READY_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with code {process.returncode}")
        try:
            client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"1")
            client.delete_object(Bucket=server.bucket, Key="ready")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > end_s:
                raise
            time.sleep(0.2)

"""The boto3 client of an S3 storage: time-outs, retries, checksums, addressing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

AT_ONCE = 8  # parts of one blob under way
# A call ends within ATTEMPTS * (CONNECT_S + READ_S) and about 15 s of waiting between them.
ATTEMPTS, CONNECT_S, READ_S = 5, 3, 20
UNSIGNED: Any = {"payload_signing_enabled": False}  # blobs bear their SHA-256: not one more of each


def make_client() -> S3Client:
    """A boto3 client with time-outs, bounded retries with jitter, and checksums of the user's wish.

    `AWS_REQUEST_CHECKSUM_CALCULATION` and `AWS_RESPONSE_CHECKSUM_VALIDATION` switch checksums of
    the protocol; unset they are `when_required`, since many servers refuse boto3's default.
    """
    checksums = {
        name: os.environ.get(f"AWS_{name.upper()}", "when_required").lower()
        for name in ("request_checksum_calculation", "response_checksum_validation")
    }
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=2 * AT_ONCE,
        tcp_keepalive=True,
        s3=UNSIGNED,
        **checksums,  # type: ignore[arg-type]  # plain strings, checked by botocore
    )
    client = boto3.Session().client("s3", config=config)
    if ".amazonaws.com" in client.meta.endpoint_url:
        return client
    # Servers other than AWS seldom answer to a bucket's name in front of their own.
    by_path: Any = {**UNSIGNED, "addressing_style": "path"}
    config = config.merge(Config(s3=by_path))
    return boto3.Session().client("s3", config=config)

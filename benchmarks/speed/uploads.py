"""One blob of 64 to 256 MiB goes to one S3 server (SeaweedFS on loopback), by our store and by
others, in turns, one after the other, and who begins changes every round: plain boto3 with
`put_object`, `upload_fileobj` with the transfer manager's defaults and with other sizes and
numbers of parts, and, where they are installed, boto3 over awscrt and `s3torchconnector`. The
figure is our rate over the best one's, each a median over rounds. Server and clients share the
machine's cores. Requests are counted by a proxy, apart from the timing."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from boto3.s3.transfer import TransferConfig

from aalnet.settings import load_settings
from benchmarks.speed.steps import DEMO, contender
from benchmarks.table import Result, Row
from cluster.runs import checkpoint
from cluster.runs.run import Run
from cluster.storage import s3
from cluster.storage.location import open_store
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.s3_server import S3Server, environment, s3_server

MIB = 2**20
BAR = 0.95
TUNED = ((16, 4), (16, 16), (64, 4))  # MiB a part, parts under way
FAILED: dict[str, str] = {}  # contenders that could not write to this server, and why
Upload = Callable[[str, bytes], None]


def measure(quick: bool) -> Result:
    """How fast a checkpoint's blob reaches the server, and in how many requests."""
    sizes = {8: 1} if quick else {64: 6, 256: 3}  # MiB: rounds
    rows: list[Row] = []
    raw: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(s3_server(Path(folder), volumes=400))
        stack.enter_context(environment(server.environment))
        for mib, rounds in sizes.items():
            rates = _rates(server, mib, rounds)
            best = max((name for name in rates if name != "ours"), key=lambda n: rates[n])
            rows.append(
                Row(f"our write / the best other, {mib} MiB", rates["ours"] / rates[best],
                    bar=BAR, at_least=True)
            )  # fmt: skip
            told = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
            raw.append(f"{mib} MiB, MiB/s, median of {rounds}: {told}; the best other: {best}")
        rows += _requests(server, quick=quick)
    raw += [f"{name} could not write to this server: {why}" for name, why in FAILED.items()]
    if missing := [name for name in ("awscrt", "s3torchconnector") if find_spec(name) is None]:
        raw.append(f"not installed, so not measured: {', '.join(missing)}")
    return Result(rows, raw)


def _rates(server: S3Server, mib: int, rounds: int) -> dict[str, float]:
    """MiB/s by contender, the median over rounds."""
    data = np.random.default_rng(0).bytes(mib * MIB)
    uploads = {name: upload for name, upload in contenders(server).items() if works(name, upload)}
    names = list(uploads)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    client = boto3.client("s3")
    for number in range(rounds + 1):  # the first one warms up
        for name in names:
            key = f"rates/{name.replace(' ', '-')}"
            started_s = time.perf_counter()
            uploads[name](key, data)
            if number:
                seconds[name].append(time.perf_counter() - started_s)
            client.delete_object(Bucket=server.bucket, Key=key)
        names = names[1:] + names[:1]
    return {name: mib / statistics.median(values) for name, values in seconds.items()}


def works(name: str, upload: Upload) -> bool:
    """Can this one write to this server at all?"""
    try:
        upload("warm-up", bytes(20 * MIB))
    except Exception as error:  # noqa: BLE001, somebody else's library, and left out with its reason
        FAILED[name] = f"{type(error).__name__}: {error}"[:200]
        return False
    return True


def contenders(server: S3Server) -> dict[str, Upload]:
    """Ways to upload, by name."""
    bucket = server.bucket
    store = open_store(f"s3://{bucket}")
    client = boto3.client("s3", config=s3.Config(max_pool_connections=32))
    found: dict[str, Upload] = {
        "ours": store.write,
        "put_object": lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data),
        "upload_fileobj": lambda key, data: client.upload_fileobj(io.BytesIO(data), bucket, key),
    }
    for part_mib, at_once in TUNED:
        config = TransferConfig(
            multipart_threshold=part_mib * MIB, multipart_chunksize=part_mib * MIB,
            max_concurrency=at_once, preferred_transfer_client="classic",
        )  # fmt: skip
        found[f"upload_fileobj {part_mib} MiB x {at_once}"] = lambda key, data, config=config: (
            client.upload_fileobj(io.BytesIO(data), bucket, key, Config=config)
        )
    if find_spec("awscrt"):
        found["boto3 over awscrt"] = _crt(bucket)
    if find_spec("s3torchconnector"):
        found["s3torchconnector"] = _connector(server)
    return found


def _crt(bucket: str) -> Upload:
    """boto3's own path over awscrt, put together by hand: boto3 gives it no http:// endpoint."""
    import botocore.session
    from awscrt.auth import AwsCredentialsProvider
    from s3transfer.crt import (
        BotocoreCRTRequestSerializer,
        CRTTransferManager,
        create_s3_crt_client,
    )

    provider = AwsCredentialsProvider.new_static(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    made = create_s3_crt_client("us-east-1", crt_credentials_provider=provider, use_ssl=False)
    serializer = BotocoreCRTRequestSerializer(
        botocore.session.get_session(),
        {
            "region_name": "us-east-1",
            "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
            "config": s3.Config(
                request_checksum_calculation="when_required", s3={"addressing_style": "path"}
            ),
        },
    )
    manager = CRTTransferManager(made, serializer)

    def upload(key: str, data: bytes) -> None:
        manager.upload(io.BytesIO(data), bucket, key).result()

    return upload


def _connector(server: S3Server) -> Upload:
    from s3torchconnector import S3Checkpoint, S3ClientConfig

    made = S3Checkpoint(
        region="us-east-1", endpoint=os.environ["AWS_ENDPOINT_URL"],
        s3client_config=S3ClientConfig(force_path_style=True),
    )  # fmt: skip

    def upload(key: str, data: bytes) -> None:
        with made.writer(f"s3://{server.bucket}/{key}") as writer:
            writer.write(data)

    return upload


def _requests(server: S3Server, *, quick: bool) -> list[Row]:
    """Requests of one checkpoint beside its parts, at the demo's settings and for a bigger net."""
    rows = []
    bigger = ("network.preset=base", "data.size_px=64", "data.batch_images=4")
    with fault_proxy(server.endpoint) as proxy, environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
        for name, overrides in (("demo", ()), ("base, 64 px", bigger)):
            if quick and overrides:
                continue
            side = contender(load_settings(DEMO, list(overrides)))
            side.step(0)
            rows.append(_counted(server, proxy, name, side.state))
    return rows


def _counted(server: S3Server, proxy: FaultProxy, name: str, state: Any) -> Row:
    run = Run(open_store(f"s3://{server.bucket}/counted"), name.partition(",")[0])
    run.store.keys()
    proxy.forget()
    manifest = checkpoint.save(run, state, {})
    sizes = [blob.size_bytes for blob in manifest.blobs.values()]
    parts = sum(1 if size < s3.WHOLE_BYTES else -(-size // s3.PART_BYTES) for size in sizes)
    told = " + ".join(f"{size / MIB:.1f}" for size in sizes)
    return Row(f"requests less parts ({parts}), {name}: {told} MiB", proxy.count() - parts, bar=3)

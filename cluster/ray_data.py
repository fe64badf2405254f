"""Packing with Ray Data: shards side by side, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from aalnet.errors import AalnetError, ConfigError
from cluster.packing import Job, pack_shard

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def packed_with_ray(
    jobs: list[Job], workers: int | None, address: str | None
) -> Iterator[dict[str, Any]]:
    """The manifests of all jobs as they are done; `error` stands in the result of one that failed.

    `workers` shards at a time, on as many CPUs; without a number, all that there are.
    """
    if not jobs:
        return
    with _connected(workers, address):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        blocks = ray.data.from_items(
            [{"job": job.to_json()} for job in jobs], override_num_blocks=len(jobs)
        )
        tasks = ray.data.TaskPoolStrategy(size=workers)
        for row in blocks.map(_pack, compute=tasks).iter_rows():
            yield json.loads(row["result"])


def _pack(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": json.dumps(pack_shard(Job.from_json(row["job"])))}
    except AalnetError as error:
        return {"result": json.dumps({"error": str(error)})}


@contextlib.contextmanager
def _connected(workers: int | None, address: str | None) -> Iterator[None]:
    """Join a cluster, or start a local one that is stopped at the end."""
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address or "local", num_cpus=None if address else workers,
            log_to_driver=False, configure_logging=False,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{where} cannot be reached: {reason}; try `aalnet doctor`, or --workers 0"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()

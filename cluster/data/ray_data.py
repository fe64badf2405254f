"""Packing with Ray Data: shards side by side, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from aalnet.errors import AalnetError, ConfigError
from cluster.data.packing import ShardPlan, pack_shard
from cluster.launch.ray_session import ClusterError, ray_session


def packed_with_ray(
    shards: list[ShardPlan], workers: int | None, address: str | None
) -> Iterator[dict[str, Any]]:
    """The manifests of all shards as they are done; `error` stands in the result of one that failed.

    `workers` shards at a time, on as many CPUs; without a number, all that there are.
    """
    if not shards:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(ray_session(address, workers))
        except ClusterError as error:
            raise ConfigError(f"{error}, or --workers 0") from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        blocks = ray.data.from_items(
            [{"plan": shard.to_json()} for shard in shards], override_num_blocks=len(shards)
        )
        tasks = ray.data.TaskPoolStrategy(size=workers)
        for row in blocks.map(_pack, compute=tasks).iter_rows():
            yield json.loads(row["result"])


def _pack(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": json.dumps(pack_shard(ShardPlan.from_json(row["plan"])))}
    except AalnetError as error:
        return {"result": json.dumps({"error": str(error)})}

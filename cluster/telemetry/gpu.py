"""A worker's GPU: its memory, and how busy it is. Nothing is told where there is none."""

from __future__ import annotations

import torch

from cluster.telemetry.tally import Tally


def read_gpu(tally: Tally) -> None:
    """Set the metrics of the GPU that this process uses. Waits for no kernel."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    free, total = torch.cuda.mem_get_info()
    for kind, size in (
        ("allocated", torch.cuda.memory_allocated()),
        ("reserved", torch.cuda.memory_reserved()),
        ("used", total - free),
        ("total", total),
    ):
        tally.set("aalnet_gpu_memory_bytes", size, kind=kind)
    try:
        busy = torch.cuda.utilization()
    except Exception:  # noqa: BLE001, no NVML, or it does not tell: errors of its own, as with MIG
        return
    tally.set("aalnet_gpu_busy_ratio", busy / 100)

"""A worker's GPU: its memory, and how busy it is. Nothing is measured where there is none."""

from __future__ import annotations

import torch

from cluster.telemetry.metrics import RunMetrics


def measure_gpu(metrics: RunMetrics) -> None:
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
        metrics.set("aalnet_gpu_memory_bytes", size, kind=kind)
    try:
        busy = torch.cuda.utilization()
    except Exception:  # noqa: BLE001, no NVML, or errors of its own, as with MIG
        return
    metrics.set("aalnet_gpu_busy_ratio", busy / 100)

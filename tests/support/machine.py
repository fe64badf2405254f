"""What a figure was measured on: processor, cores, versions, load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def cpu_model() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """Processor, cores and versions in one line."""
    return (
        f"{cpu_model()}, {cores()} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, ray {version('ray')}"
    )


def load() -> float:
    """Load average of the last minute: over the number of cores, figures are noisy."""
    return os.getloadavg()[0]

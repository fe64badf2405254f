"""What fits where: how many trials at once, and with how many cores, on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aalnet.errors import ConfigError
from aalnet.settings import Settings
from tuner.settings import CampaignSettings


@dataclass(frozen=True)
class Node:
    """One machine of a cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Slots:
    """What one trial gets, and how many there are at once."""

    at_once: int
    workers: int
    device: str
    cpus: int
    gpus: int
    where: str

    @property
    def resources(self) -> dict[str, float]:
        """Of the trial's own process; a nested run's workers bring their own."""
        if self.workers > 1:
            return {"CPU": 0, "node:__internal_head__": 0.001}
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def find_slots(
    settings: CampaignSettings,
    nodes: Sequence[Node],
    where: str,
    at_once: int | Literal["auto"] | None = None,
) -> Slots:
    """How many trials fit at once: `trials_at_once` of the campaign, or as many as there are.

    Raises:
        ConfigError: not even one does, or not as many as asked for.
    """
    device = _device(settings.run_settings({}), nodes, where)
    on_gpu, workers = device == "cuda", settings.workers
    name = "GPU" if on_gpu else "CPU"
    units = sum(node.gpus if on_gpu else node.cpus for node in nodes)
    fits = units // workers
    several = f"a trial of {workers} worker{'s' * (workers > 1)} needs as many {name}s"
    if fits < 1:
        raise ConfigError(
            f"{several}, {where} has {units}; lower workers of the campaign, or give it more"
        )
    at_once = settings.trials_at_once if at_once is None else at_once
    count = min(fits, settings.budget.trials) if at_once == "auto" else at_once
    if count > fits:
        raise ConfigError(
            f"trials_at_once {count}: {several}, {where} has {units}; lower it to {fits}"
        )
    cpus = _cpus_each(nodes, count, on_gpu=on_gpu) if workers == 1 else 0
    return Slots(count, workers, device, cpus, int(on_gpu), where)


def _device(base: Settings, nodes: Sequence[Node], where: str) -> str:
    gpus = any(node.gpus for node in nodes)
    if base.run.device == "auto":
        return "cuda" if gpus else "cpu"
    if base.run.device == "cuda" and not gpus:
        raise ConfigError(f"run.device is cuda, but {where} has no GPU; set run.device=cpu")
    return base.run.device


def _cpus_each(nodes: Sequence[Node], at_once: int, *, on_gpu: bool) -> int:
    """The most cores that each of so many trials can have, where a trial is on one node."""

    def trials_of(cpus: int) -> int:
        return sum(
            min(node.cpus // cpus if cpus else node.gpus, node.gpus if on_gpu else node.cpus)
            for node in nodes
        )

    most = max(node.cpus for node in nodes)
    return next((cpus for cpus in range(most, 0, -1) if trials_of(cpus) >= at_once), 0)

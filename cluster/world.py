"""The other workers, seen through a torch process group that somebody else started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class ProcessWorld:
    """`aalnet.batch.World` over torch.distributed; without a process group it is alone.

    `all_reduces` counts collective calls, so a test can hold them to a number.
    """

    rank: int = 0
    size: int = 1
    all_reduces: int = field(default=0, compare=False)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum over workers in place: one all-reduce of one flat buffer."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        self.all_reduces += 1
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def agree(self, value: int, device: torch.device) -> int:
        """Worker 0's value, on every worker. Also a barrier."""
        shared = torch.tensor(value if self.rank == 0 else 0, dtype=torch.int64, device=device)
        self.sum_([shared])
        return int(shared.item())


def current_world() -> ProcessWorld:
    """The world of the default process group, or one worker."""
    if dist.is_available() and dist.is_initialized():
        return ProcessWorld(dist.get_rank(), dist.get_world_size())
    return ProcessWorld()

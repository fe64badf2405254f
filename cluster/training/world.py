"""The other workers, seen through a torch process group that somebody else started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

LONGEST_WAIT = timedelta(hours=4)  # for worker 0, which evaluates; a dead one is noticed at once


@dataclass
class ProcessWorld:
    """`aalnet.batch.World` over torch.distributed; without a process group it is alone.

    `all_reduces` counts collective calls, so a test can hold them to a number. A request to stop
    travels with the sums of the next step, so all workers learn of it after the same step, and
    it costs no call of its own. `sums_s` are the seconds in sums since `take_sums_s`.
    """

    rank: int = 0
    size: int = 1
    all_reduces: int = field(default=0, compare=False)
    sums_s: float = field(default=0.0, compare=False)
    stop_requested: bool = field(default=False, compare=False)
    waiting: dist.ProcessGroup | None = field(default=None, compare=False)
    _stop_requests: Tensor | None = field(default=None, compare=False)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum over workers in place: one all-reduce of one flat buffer."""
        if self.size == 1:
            return
        started_s = time.perf_counter()
        request = tensors[0].new_full((1,), float(self.stop_requested))
        flat = torch.cat([*(tensor.reshape(-1) for tensor in tensors), request])
        dist.all_reduce(flat)
        self.all_reduces += 1
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()
        self._stop_requests = flat[at:]
        self.sums_s += time.perf_counter() - started_s

    def take_sums_s(self) -> float:
        """Seconds spent in sums since the last call."""
        sums_s, self.sums_s = self.sums_s, 0.0
        return sums_s

    def request_stop(self) -> None:
        """Ask all workers, from this one, to stop after the next step."""
        self.stop_requested = True

    @property
    def stopping(self) -> bool:
        """Was any worker asked to stop before the last sum? The same on every worker."""
        if self.size == 1:
            return self.stop_requested
        return self._stop_requests is not None and bool(self._stop_requests.item())

    def agree(self, value: int) -> int:
        """Worker 0's value, on every worker. Also a barrier, and one that may take long."""
        if self.size == 1:
            return value
        shared = torch.tensor(value if self.rank == 0 else 0, dtype=torch.int64)
        dist.all_reduce(shared, group=self.waiting)
        self.all_reduces += 1
        return int(shared.item())


def current_world() -> ProcessWorld:
    """The world of the default process group, or one worker."""
    if dist.is_available() and dist.is_initialized():
        waiting = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        return ProcessWorld(dist.get_rank(), dist.get_world_size(), waiting=waiting)
    return ProcessWorld()

"""Ways to run one generator, and the probe that picks the fastest which draws the same pictures.

Shapes: N distinct conditions, M samples (rows), C channels, H W pixels, Z noise size.

A row's bits may depend on how many rows run beside it: below some size the CPU's matrix products
take other paths. The probe finds, per stage, the size from which on every row keeps its bits;
smaller batches are filled up to it. So a request has the same bytes alone and in a busy batch.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aalnet.networks import DataSpec, Generator
from deploy.endpoint.settings import EndpointSettings

AGREEMENT = 1e-3  # largest difference from the eager float32 generator
LONGEST_BATCH_S = 0.5  # a batch never grows beyond this: the next request waits for it
REPEATS = 5
SPREAD = 0.02  # a faster execution must win by this to be preferred to a simpler one
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Execution:
    """One way to run the generator."""

    traced: bool = False  # recorded once, then run without Python (and without its lock)
    compiled: bool = False
    channels_last: bool = False
    bfloat16: bool = False

    @property
    def name(self) -> str:
        how = "compiled" if self.compiled else "traced" if self.traced else "eager"
        extras = [name for name in ("channels_last", "bfloat16") if getattr(self, name)]
        return " ".join([how, *extras])


@dataclass(frozen=True)
class Plan:
    """What the probe chose: an execution, the batch sizes it may run, the smallest per stage."""

    execution: Execution
    sizes: Sizes
    floors: tuple[int, int, int]  # of encode, modulate, decode

    @property
    def batch_samples(self) -> int:
        return self.sizes[-1]

    def size(self, rows: int, stage: int) -> int:
        """The size to run `rows` rows of a stage at."""
        least = max(rows, self.floors[stage])
        return next(size for size in self.sizes if size >= least)


class Encode(nn.Module):
    """condition [N, Cx, H, W] -> the condition's part of every level, then of the output"""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        start = self.generator.start
        output = () if start is None else (start(condition),)
        return (*self.generator.encode(condition), *output)


class Modulate(nn.Module):
    """label [M], noise [M, Z] -> modulations of every level"""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, label: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.generator.modulate(noise, self.generator.label(label)))


class Decode(nn.Module):
    """encoded rows, modulations -> samples float32 [M, Cy, H, W] in [-1, 1]"""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, encoded: tuple[Tensor, ...], modulations: tuple[Tensor, ...]) -> Tensor:
        levels = len(modulations)
        samples = self.generator.decode(list(encoded[:levels]), list(modulations))
        for start in encoded[levels:]:
            samples = samples + start
        return samples.float().clamp(-1, 1)


class Runner:
    """A generator made ready to run in one way. Not for two threads at once."""

    def __init__(self, generator: Generator, spec: DataSpec, size_px: int, plan: Plan) -> None:
        self.plan = plan
        self.device = next(generator.parameters()).device
        self.layout = (
            torch.channels_last if plan.execution.channels_last else torch.contiguous_format
        )
        own = copy.deepcopy(generator).to(memory_format=self.layout)  # type: ignore[call-overload]
        if plan.execution.bfloat16:
            own = own.bfloat16()
        self.dtype = next(own.parameters()).dtype
        self.size_px, self.labels = size_px, len(spec.labels)
        self.noise_size = own.embed[0].in_features - own.label.embedding_dim
        self.channels = spec.condition_channels
        self.stages: list[Callable[..., Any]] = [Encode(own), Modulate(own), Decode(own)]
        if plan.execution.compiled:
            self.stages = [torch.compile(stage, dynamic=False) for stage in self.stages]
        elif plan.execution.traced:
            self._trace()

    @torch.inference_mode()
    def draw(self, condition: Tensor, owner: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        """condition [N, Cx, H, W] with N <= M, owner [M] (the condition of each row), label [M],
        noise [M, Z] -> samples float32 [M, Cy, H, W] in [-1, 1], on the CPU"""
        rows = len(owner)
        encoded = self.encode(condition)
        modulations = self.modulate(label, noise)
        return self.decode(encoded, owner, modulations)[:rows].cpu()

    def encode(self, condition: Tensor) -> tuple[Tensor, ...]:
        filled = _filled(condition, self.plan.size(len(condition), 0))
        filled = filled.to(self.device, self.dtype).contiguous(memory_format=self.layout)
        encoded: tuple[Tensor, ...] = self.stages[0](filled)
        return encoded

    def modulate(self, label: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        size = self.plan.size(len(label), 1)
        noise = _filled(noise, size).to(self.device, self.dtype)
        label = _filled(label, size).to(self.device)
        modulations: tuple[Tensor, ...] = self.stages[1](label, noise)
        return modulations

    def decode(
        self, encoded: tuple[Tensor, ...], owner: Tensor, modulations: tuple[Tensor, ...]
    ) -> Tensor:
        size = self.plan.size(len(owner), 2)
        owner = _filled(owner, size).to(self.device)
        rows = tuple(part[owner].contiguous(memory_format=self.layout) for part in encoded)
        modulated = tuple(_filled(part, size)[:size] for part in modulations)
        samples: Tensor = self.stages[2](rows, modulated)
        return samples

    @torch.inference_mode()
    def _trace(self) -> None:
        """Record the stages. Only tensors decide what they do, so one record fits every size."""
        condition, owner, label, noise = self.inputs(2)
        condition = condition.to(self.device, self.dtype).contiguous(memory_format=self.layout)
        label, noise = label.to(self.device), noise.to(self.device, self.dtype)
        encoded: Any = self.stages[0](condition)
        modulations = self.stages[1](label, noise)
        rows = tuple(part[owner].contiguous(memory_format=self.layout) for part in encoded)
        examples = ((condition,), (label, noise), (rows, modulations))
        with warnings.catch_warnings():
            # torch 2.13 calls it deprecated in favour of torch.compile, which takes minutes to
            # start and holds Python's lock while it runs.
            warnings.simplefilter("ignore", DeprecationWarning)
            # The branch it warns of asks for rows per condition, which are always one here.
            warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
            self.stages = [
                torch.jit.trace(stage, example, check_trace=False)  # type: ignore[no-untyped-call]
                for stage, example in zip(self.stages, examples, strict=True)
            ]

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A fixed batch with every row its own condition: what a probe draws."""
        source = torch.Generator().manual_seed(0)
        shape = (rows, self.channels, self.size_px, self.size_px)
        condition = torch.rand(shape, generator=source) * 2 - 1
        noise = torch.randn((rows, self.noise_size), generator=source)
        return condition, torch.arange(rows), torch.arange(rows) % self.labels, noise


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with copies of its first row up to `rows`."""
    missing = rows - len(tensor)
    if missing <= 0:
        return tensor
    return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])


def sizes_up_to(largest: int, *, coarse: bool) -> Sizes:
    """1, 2, 4, ... if coarse (each is a graph of its own), else at most a quarter apart."""
    sizes = [1]
    while sizes[-1] < largest:
        step = sizes[-1] if coarse else max(1, 2 ** (sizes[-1].bit_length() - 3))
        sizes.append(min(sizes[-1] + step, largest))
    return tuple(sizes)


def candidates(device: torch.device, settings: EndpointSettings) -> list[Execution]:
    """What may be tried on a device, the simplest first."""
    ways = [Execution(), Execution(channels_last=True)]
    ways += [Execution(traced=True), Execution(traced=True, channels_last=True)]
    if settings.compile:
        ways.append(Execution(compiled=True, channels_last=True))
    if device.type == "cuda":
        ways += [
            Execution(way.traced, way.compiled, channels_last=True, bfloat16=True)
            for way in ways
            if way.channels_last
        ]
    return ways


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median time of some work after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started_at_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started_at_s)
    return sorted(times)[len(times) // 2]


def longest_batch(runner: Runner, sizes: Sequence[int]) -> int:
    """The largest of the sizes that runs in LONGEST_BATCH_S, tried from the smallest."""
    best = sizes[0]
    for size in sizes:
        inputs = runner.inputs(size)
        if seconds_of(lambda: runner.draw(*inputs), runner.device, repeats=1) > LONGEST_BATCH_S:  # noqa: B023
            break
        best = size
    return best

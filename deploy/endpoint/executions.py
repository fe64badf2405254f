"""Ways to run one generator: eager, traced, compiled, in several layouts and precisions.

Shapes: N distinct conditions, M samples (rows), C channels, H W pixels, Z noise size.

A batch is one call: between two operations torch takes Python's lock again, which the thread that
speaks HTTP holds most of the time; a traced generator with all that is around it takes it once.

A row's bits may depend on how many rows run beside it: below some size the CPU's convolutions and
matrix products take other paths. The probe finds, for each stage of the generator, the size from
which on every row keeps its bits; smaller batches are filled up to it, stage by stage, since the
stage that needs most rows is the cheapest. So a request has the same bytes alone and in a crowd.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aalnet.networks import DataSpec, Generator
from aalnet.sampling import from_pixels, to_pixels
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


class Fewest(NamedTuple):
    """The smallest sizes at which each stage of the generator may run."""

    conditions: int = 1  # in the encoder
    rows: int = 1  # in the decoder
    noises: int = 1  # in what becomes of noise and label


ONE_OF_EACH = Fewest()


@dataclass(frozen=True)
class Plan:
    """What the probe chose: an execution, the batch sizes it may run, the smallest that may be."""

    execution: Execution
    sizes: Sizes
    fewest: Fewest = ONE_OF_EACH

    @property
    def batch_samples(self) -> int:
        return self.sizes[-1]

    def size(self, count: int, fewest: int) -> int:
        """The size to run `count` conditions or rows at."""
        return next(size for size in self.sizes if size >= max(count, fewest))


@dataclass(frozen=True)
class Batch:
    """What a generator is asked for at once."""

    condition: NDArray[np.uint8]  # [N, Cx, H, W], N <= M
    owner: NDArray[np.int64]  # [M], the condition of each row
    label: NDArray[np.int64]  # [M]
    noise: NDArray[np.float32]  # [M, Z]


@dataclass(frozen=True)
class Samples:
    """What it drew, on the CPU."""

    images: NDArray[np.float32]  # [M, Cy, H, W] in [-1, 1]
    pixels: NDArray[np.uint8]  # [M, H, W, 3]
    finite: NDArray[np.bool_]  # [M]

    def rows(self, first: int, end: int) -> Samples:
        return Samples(self.images[first:end], self.pixels[first:end], self.finite[first:end])


def joined(parts: Sequence[Samples]) -> Samples:
    """The rows of several batches, one after the other."""
    return Samples(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.finite for part in parts]),
    )


class Sampler(nn.Module):
    """A generator with all that is around it: bytes in, bytes out."""

    def __init__(self, generator: Generator, layout: torch.memory_format) -> None:
        super().__init__()
        self.generator, self.layout = generator, layout
        self.dtype = next(generator.parameters()).dtype

    def forward(
        self, condition: Tensor, owner: Tensor, label: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As many rows as there are owners; there may be more labels and noises."""
        generator = self.generator
        condition = from_pixels(condition).to(self.dtype).contiguous(memory_format=self.layout)
        encoded = [*generator.encode(condition)]
        if generator.start is not None:
            encoded.append(generator.start(condition))
        rows = [part[owner].contiguous(memory_format=self.layout) for part in encoded]
        modulations = generator.modulate(noise.to(self.dtype), generator.label(label))
        modulations = [part[: owner.shape[0]] for part in modulations]
        samples = generator.decode(rows[: len(modulations)], modulations)
        for start in rows[len(modulations) :]:
            samples = samples + start
        finite = samples.isfinite().flatten(1).all(1)
        images = samples.float().clamp(-1, 1)
        return images, to_pixels(images), finite


class Runner:
    """A generator made ready to run in one way. Not for two threads at once."""

    def __init__(self, generator: Generator, spec: DataSpec, size_px: int, plan: Plan) -> None:
        self.plan = plan
        self.device = next(generator.parameters()).device
        layout = torch.channels_last if plan.execution.channels_last else torch.contiguous_format
        own = copy.deepcopy(generator).to(memory_format=layout)  # type: ignore[call-overload]
        if plan.execution.bfloat16:
            own = own.bfloat16()
        self.size_px, self.labels = size_px, len(spec.labels)
        self.noise_size = own.embed[0].in_features - own.label.embedding_dim
        self.channels = spec.condition_channels
        self.sampler: Callable[..., Any] = Sampler(own, layout)
        if plan.execution.compiled:
            self.sampler = torch.compile(self.sampler, dynamic=True)  # one graph for every size
        elif plan.execution.traced:
            self._trace()

    @torch.inference_mode()
    def draw(self, batch: Batch) -> Samples:
        """Draw a batch of at most `plan.batch_samples` rows."""
        rows, plan = len(batch.owner), self.plan
        filled = plan.size(rows, plan.fewest.rows)
        noises = plan.size(filled, plan.fewest.noises)
        found = self.sampler(
            self._tensor(batch.condition, plan.size(len(batch.condition), plan.fewest.conditions)),
            self._tensor(batch.owner, filled),
            self._tensor(batch.label, noises),
            self._tensor(batch.noise, noises),
        )
        images, pixels, finite = (
            (part if self.device.type == "cpu" else part.cpu()).numpy()[:rows] for part in found
        )
        return Samples(images, pixels, finite)

    def _tensor(self, array: NDArray[Any], count: int) -> Tensor:
        """The array on the device, with copies of its first row up to `count`."""
        if missing := count - len(array):
            array = np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    @torch.inference_mode()
    def _trace(self) -> None:
        """Record the sampler. Only tensors decide what it does, so one record fits every size."""
        batch = self.inputs(2)
        parts = (batch.condition, batch.owner, batch.label, batch.noise)
        example = tuple(self._tensor(part, 2) for part in parts)
        with warnings.catch_warnings():
            # torch 2.13 calls it deprecated in favour of torch.compile, which takes minutes to
            # start and holds Python's lock while it runs.
            warnings.simplefilter("ignore", DeprecationWarning)
            # The branch it warns of asks for rows per condition, which are always one here.
            warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
            self.sampler = torch.jit.trace(self.sampler, example, check_trace=False)  # type: ignore[no-untyped-call]

    def inputs(self, rows: int) -> Batch:
        """A fixed batch with every row its own condition: what a probe draws."""
        source = np.random.default_rng(0)
        shape = (rows, self.channels, self.size_px, self.size_px)
        return Batch(
            condition=source.integers(0, 256, shape, np.uint8),
            owner=np.arange(rows),
            label=np.arange(rows) % self.labels,
            noise=source.standard_normal((rows, self.noise_size), np.float32),
        )


def sizes_up_to(largest: int) -> Sizes:
    """1, 2, 3, 4, 5, 6, ...: at most a quarter apart."""
    sizes = [1]
    while sizes[-1] < largest:
        step = max(1, 2 ** (sizes[-1].bit_length() - 3))
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


def seconds_of(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of some work, which ends on the CPU, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started_at_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at_s)
    return sorted(times)[len(times) // 2]


def longest_batch(runner: Runner, sizes: Sequence[int]) -> int:
    """The largest of the sizes that runs in LONGEST_BATCH_S, tried from the smallest."""
    best = sizes[0]
    for size in sizes:
        batch = runner.inputs(size)
        if seconds_of(lambda: runner.draw(batch), repeats=1) > LONGEST_BATCH_S:  # noqa: B023
            break
        best = size
    return best

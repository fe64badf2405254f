"""How a generator runs: ONNX Runtime on a CPU, torch's modules on a GPU or with `compile`.

Which one is a function of device and settings; every answer names it. Not torch's modules on a CPU:
between two operations torch takes Python's lock again, which the thread that speaks HTTP holds most
of the time: 0.61 (1 sample a request) and 0.71 (8) of a traced program's images/s, at 8 clients
on two cores; in a process of their own 0.6 at 8 samples. ONNX Runtime takes it once, needs a third
to three quarters of torch's time, and a row has the same bits in a batch of any size, which torch's
kernels do not promise. Where a start finds otherwise, every batch is filled up to one size.

Shapes: N distinct conditions, M samples (rows), C channels, H W pixels, Z noise size.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from aalnet.networks import DataSpec, Generator
from aalnet.sampling import from_pixels, to_pixels
from deploy.endpoint.settings import EndpointSettings

# About half a second: the next request waits for a batch that runs.
BATCH_FLOP = {"cpu": 4e10, "cuda": 4e12}
Arrays = tuple[NDArray[Any], ...]
log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class ModelInput:
    """Conditions and the rows to draw for them."""

    condition: NDArray[np.uint8]  # [N, Cx, H, W], N <= M
    owner: NDArray[np.int64]  # [M], the condition of each row
    label: NDArray[np.int64]  # [M]
    noise: NDArray[np.float32]  # [M, Z]

    @property
    def arrays(self) -> Arrays:
        """In the order of `InferenceModule.forward`."""
        return self.condition, self.owner, self.label, self.noise

    def padded(self, count: int) -> ModelInput:
        """With copies of the first row up to `count` conditions and rows."""
        return ModelInput(*(
            np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])
            for array in self.arrays
        ))  # fmt: skip


@dataclass(frozen=True)
class ModelOutput:
    """The drawn rows, on the CPU."""

    images: NDArray[np.float32]  # [M, Cy, H, W] in [-1, 1]
    pixels: NDArray[np.uint8]  # [M, H, W, 3]
    finite: NDArray[np.bool_]  # [M]

    def rows(self, first: int, end: int) -> ModelOutput:
        """The rows `first` .. `end - 1`."""
        return ModelOutput(self.images[first:end], self.pixels[first:end], self.finite[first:end])


def concatenated(parts: Sequence[ModelOutput]) -> ModelOutput:
    """The rows of several batches, one after the other."""
    return ModelOutput(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.finite for part in parts]),
    )


class InferenceModule(nn.Module):
    """A generator with all that is around it: bytes in, bytes out."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, condition: Tensor, owner: Tensor, label: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`ModelInput` -> `ModelOutput`, as tensors."""
        generator, pixels = self.generator, from_pixels(condition)
        skips, summary = generator.encode(pixels)
        label_embedding = generator.label(label)
        codes = generator.prior(summary[owner], label_embedding).codes(noise[:, None])[:, 0]
        modulations = generator.modulate(codes, label_embedding)
        samples = generator.decode([skip[owner] for skip in skips], modulations)
        if generator.start is not None:
            samples = samples + generator.start(pixels)[owner]
        finite = samples.isfinite().flatten(1).all(1)
        images = samples.clamp(-1, 1)
        return images, to_pixels(images), finite


@dataclass(frozen=True)
class Graph:
    """What all checkpoints of one architecture share."""

    model: onnx.ModelProto | None  # None where torch runs the modules
    batch_samples: int  # largest batch


def probe_input(generator: Generator, spec: DataSpec, size_px: int, rows: int) -> ModelInput:
    """A fixed batch with every row its own condition."""
    source = np.random.default_rng(0)
    first = generator.embed[0]
    assert isinstance(first, nn.Linear)
    noise_size = first.in_features - generator.label.embedding_dim
    shape = (rows, spec.condition_channels, size_px, size_px)
    return ModelInput(
        condition=source.integers(0, 256, shape, np.uint8),
        owner=np.arange(rows),
        label=np.arange(rows) % len(spec.labels),
        noise=source.standard_normal((rows, noise_size), np.float32),
    )


@torch.no_grad()
def build_graph(
    generator: Generator, spec: DataSpec, size_px: int, settings: EndpointSettings
) -> Graph:
    """Count a row's floating point operations and, for a CPU, export to ONNX: some seconds."""
    device = next(generator.parameters()).device
    module = InferenceModule(generator).eval()
    example = [
        torch.from_numpy(array).to(device)
        for array in probe_input(generator, spec, size_px, 2).arrays
    ]
    with FlopCounterMode(display=False) as counter:
        module(*example)
    per_row = max(counter.get_total_flops() / 2, 1)
    budget = BATCH_FLOP[device.type] * (settings.threads if device.type == "cpu" else 1)
    batch_samples = max(1, min(settings.batch_samples, int(budget / per_row)))
    if device.type != "cpu" or settings.compile:
        return Graph(None, batch_samples)
    conditions, rows = Dim("conditions", min=1, max=2**16), Dim("rows", min=1, max=2**16)
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # they tell of every pass
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch 2.13's exporter warns of its own tree specifications and of names it merges.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*The axis name", UserWarning)
        program = torch.onnx.export(
            module,
            tuple(example),
            dynamo=True,
            optimize=False,  # so that weights keep their names: those of a checkpoint replace them
            verbose=False,
            dynamic_shapes=({0: conditions}, {0: rows}, {0: rows}, {0: rows}),
        )
    assert program is not None
    return Graph(program.model_proto, batch_samples)


class Executor:
    """A generator made ready to run. Not for two threads at once."""

    def __init__(
        self,
        generator: Generator,
        spec: DataSpec,
        size_px: int,
        settings: EndpointSettings,
        graph: Graph,
    ) -> None:
        self.device = next(generator.parameters()).device
        self.batch_samples, self.padded = graph.batch_samples, False
        module = InferenceModule(generator).eval()
        self._session: onnxruntime.InferenceSession | None = None
        if graph.model is None:
            self._module = torch.compile(module, dynamic=True) if settings.compile else module
            backend = f"torch-{torch.__version__}{'-compiled' if settings.compile else ''}"
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = settings.threads
            self._session = onnxruntime.InferenceSession(
                _with_weights(graph.model, module), options, providers=["CPUExecutionProvider"]
            )
            self._inputs = [node.name for node in self._session.get_inputs()]
            backend = f"onnxruntime-{onnxruntime.__version__}"
        self._backend = backend
        full = probe_input(generator, spec, size_px, self.batch_samples)
        self.padded = not self._is_batch_invariant(full)

    @property
    def name(self) -> str:
        """Program, processor, precision, and the size of a batch where that decides bits."""
        kind = (
            torch.backends.cpu.get_cpu_capability()
            if self.device.type == "cpu"
            else torch.cuda.get_device_name(self.device).replace(" ", "-")
        )
        size = f"/batch-{self.batch_samples}" if self.padded else ""
        return f"{self._backend}/{self.device.type}-{kind}/float32{size}"

    def run(self, inputs: ModelInput) -> ModelOutput:
        """Draw at most `batch_samples` rows."""
        rows = len(inputs.owner)
        if self.padded:
            inputs = inputs.padded(self.batch_samples)
        if self._session is not None:
            outputs = self._session.run(None, dict(zip(self._inputs, inputs.arrays, strict=True)))
            return ModelOutput(*outputs).rows(0, rows)
        with torch.inference_mode():
            tensors = (torch.from_numpy(array).to(self.device) for array in inputs.arrays)
            return ModelOutput(*(part.cpu().numpy() for part in self._module(*tensors))).rows(
                0, rows
            )

    def _is_batch_invariant(self, full: ModelInput) -> bool:
        """Has a row the same bits alone, in half a batch and, elsewhere, in a full one?"""
        images = self.run(full).images
        for rows in {1, 2, 3, (len(images) + 1) // 2, len(images)}:
            last = np.arange(len(images))[::-1][:rows]
            part = ModelInput(full.condition[last], np.arange(len(last)), full.label[last],
                              full.noise[last])  # fmt: skip
            if not np.array_equal(self.run(part).images, images[last], equal_nan=True):
                return False
        return True


def _with_weights(model: onnx.ModelProto, module: nn.Module) -> bytes:
    """The graph with the weights of a module of the same architecture, serialized."""
    weights = module.state_dict()
    own = onnx.ModelProto()
    own.CopyFrom(model)
    for initializer in own.graph.initializer:
        if initializer.name in weights:
            weight = weights.pop(initializer.name).contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(weight, initializer.name))
    assert not weights, f"the graph lacks {sorted(weights)}"
    return bytes(own.SerializeToString())

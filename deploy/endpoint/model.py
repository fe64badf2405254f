"""A model that is ready to be served, and the holder that requests take it from."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aalnet.errors import CheckpointError, NonFiniteError
from aalnet.networks import DataSpec
from aalnet.sampling import best_device, noise_for
from aalnet.settings import Settings
from cluster.runs.checkpoint import Checkpoint, load_generator
from cluster.runs.manifest import Manifest
from deploy.endpoint.errors import HttpError
from deploy.endpoint.execution import (
    Executor,
    Graph,
    ModelInput,
    ModelOutput,
    build_graph,
    concatenated,
)
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class SampleQuery:
    """What one request asks of a model: k samples of one condition."""

    condition: NDArray[np.uint8]  # [Cx, S, S]
    label: int
    noise: NDArray[np.float32]  # [k, Z]


class LoadedModel:
    """One verified checkpoint, warm, ready to run."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        manifest: Manifest,
        settings: Settings,
        executor: Executor,
    ) -> None:
        self.name = name
        self.run, self.images, self.digest = checkpoint.run.name, checkpoint.images, manifest.digest
        self.spec: DataSpec = manifest.spec
        self.size_px: int = settings.data.size_px
        self.noise_size: int = settings.network.noise_size
        self.settings = settings
        self.figures = {
            name: value
            for name, value in manifest.figures.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        self.executor = executor

    def query(
        self,
        condition: NDArray[np.uint8],
        label: str,
        num_samples: int,
        seed: int,
        temperature: float = 1.0,
    ) -> SampleQuery:
        """A request for this model; the same noise as `aalnet sample` takes for one image.

        Raises:
            HttpError: the model does not know the label.
        """
        if label not in self.spec.labels:
            raise HttpError(
                422, "label", "unknown label; GET /v1/model lists those the model knows"
            )
        noise = noise_for(seed, 0, 1, num_samples, self.noise_size)[0].numpy()
        noise *= np.float32(temperature)
        return SampleQuery(condition, self.spec.labels.index(label), noise)

    def draw(self, queries: Sequence[SampleQuery]) -> list[ModelOutput]:
        """The k samples of each query.

        Equal conditions are encoded once. More rows than a batch may have run in several.
        """
        places: dict[bytes, int] = {}
        distinct: list[NDArray[np.uint8]] = []
        owners: list[int] = []
        for query in queries:
            key = query.condition.tobytes()
            if key not in places:
                places[key] = len(distinct)
                distinct.append(query.condition)
            owners += [places[key]] * len(query.noise)
        counts = [len(query.noise) for query in queries]
        label = np.repeat([query.label for query in queries], counts)
        noise = np.concatenate([query.noise for query in queries])
        step = self.executor.batch_samples
        batches = [
            self.executor.run(_model_input(distinct, owners[rows], label[rows], noise[rows]))
            for rows in (slice(first, first + step) for first in range(0, len(owners), step))
        ]
        whole = batches[0] if len(batches) == 1 else concatenated(batches)
        ends = np.cumsum(counts).tolist()
        return [whole.rows(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def check(self) -> None:
        """Draw a fixed condition with every label: finite, and of the right shape.

        Raises:
            NonFiniteError: a sample is NaN or infinite.
            CheckpointError: samples have another shape than the settings say.
        """
        shape = (self.spec.condition_channels, self.size_px, self.size_px)
        condition = np.broadcast_to(np.linspace(0, 255, self.size_px).astype(np.uint8), shape)
        queries = [self.query(condition, label, 2, seed=0) for label in self.spec.labels]
        expected = (2, self.spec.target_channels, self.size_px, self.size_px)
        for label, samples in zip(self.spec.labels, self.draw(queries), strict=True):
            if not samples.finite.all():
                raise NonFiniteError(f"{self.title} draws what is not finite for `{label}`")
            if samples.images.shape != expected:
                raise CheckpointError(
                    f"{self.title} draws {samples.images.shape} where {expected} was expected"
                )

    @property
    def title(self) -> str:
        """Run, images seen and digest, for logs."""
        return f"{self.run}@{self.images} ({self.digest[:12]})"


def _model_input(
    distinct: list[NDArray[np.uint8]],
    owners: list[int],
    label: NDArray[np.int64],
    noise: NDArray[np.float32],
) -> ModelInput:
    """One batch of the rows of `owners`, with no condition that none of them has."""
    used = sorted(set(owners))
    place = {owner: i for i, owner in enumerate(used)}
    condition = np.stack([distinct[i] for i in used])
    return ModelInput(condition, np.array([place[i] for i in owners]), label, noise)


class Loader:
    """Makes checkpoints ready; those of one architecture share a graph."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self._graphs: dict[str, Graph] = {}

    def load(self, checkpoint: Checkpoint, name: str) -> LoadedModel:
        """Read, verify, warm and check a checkpoint.

        Raises:
            CheckpointError: missing, damaged, or drawing the wrong shape.
            StoreError: the storage does not answer.
            NonFiniteError: it draws what is not finite.
        """
        manifest = checkpoint.manifest()
        generator, settings = load_generator(checkpoint, best_device())
        architecture = (generator, manifest.spec, settings.data.size_px, self.settings)
        key = f"{settings.network} {settings.data.size_px} {manifest.spec}"
        if key not in self._graphs:
            self._graphs[key] = build_graph(*architecture)
        executor = Executor(*architecture, self._graphs[key])
        model = LoadedModel(name, checkpoint, manifest, settings, executor)
        model.check()
        log.info("%s runs by %s, %d samples at once", model.title, executor.name,
                 executor.batch_samples)  # fmt: skip
        return model


class ModelHolder:
    """The model that new requests get. Requests keep the one they were admitted with."""

    def __init__(self, model: LoadedModel) -> None:
        self.current = model  # replaced in one assignment, which Python makes atomic

"""The held-out pairs of a run: figures and sample grids of a generator on them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aalnet.evaluation import Evaluator, Figures
from aalnet.features import load_features
from aalnet.networks import DataSpec, Generator
from aalnet.sampling import draw, from_uint8, grid, noise_for
from aalnet.settings import Settings
from cluster.data.pairs import Pairs

SEED = 20_240  # of evaluation noise: the same for every run, model and checkpoint


class HeldOut:
    """Held-out pairs on a device, ready to be evaluated again and again."""

    def __init__(self, settings: Settings, spec: DataSpec, device: torch.device) -> None:
        data = settings.data
        pairs = Pairs(data.test, data.size_px, data.memory_budget_mib, data.cache_gib)
        count = min(len(pairs), settings.evaluation.max_images)
        pairs.require_channels((spec.condition_channels, spec.target_channels))
        labels = pairs.labels(spec.labels)[:count]
        conditions, targets = zip(*(pairs.pair(row) for row in range(count)), strict=True)
        self.settings = settings
        self.device = device
        self.conditions = from_uint8(np.stack(conditions)).to(device)
        self.targets = from_uint8(np.stack(targets)).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self._evaluator = Evaluator(
            self.conditions,
            self.labels,
            self.targets,
            noise_size=settings.network.noise_size,
            features=load_features(settings.evaluation.features),
        )

    def evaluate(
        self, generator: Generator, k: int | None = None, temperature: float | Tensor = 1.0
    ) -> Figures:
        """All figures of a generator; k samples per condition, by default the setting's."""
        return self._evaluator.evaluate(
            lambda condition, label, noise: draw(generator, condition, label, noise),
            k=k or self.settings.evaluation.samples,
            seed=SEED,
            temperature=temperature,
        )

    def energy_scores(self, generator: Generator, k: int, temperature: float) -> Tensor:
        """The energy score of each pair, [N], by other noise than `evaluate` has."""
        return self._evaluator.energy_scores(
            lambda condition, label, noise: draw(generator, condition, label, noise),
            k=k,
            seed=SEED + 1,
            temperature=temperature,
        )

    def grid(self, generator: Generator) -> Image.Image:
        """Condition, target and samples of fixed conditions; the same noise every time."""
        k = self.settings.evaluation.samples
        rows = self.grid_rows(generator, k)
        return grid(rows, ["condition", "target", *(f"sample {i + 1}" for i in range(k))])

    def grid_rows(
        self, generator: Generator, k: int, temperature: Tensor | None = None
    ) -> list[list[Tensor]]:
        """Rows of condition, target and k samples, spread over the held-out pairs.

        temperature: of each held-out pair, [N]; None: 1 for all.
        """
        count = min(self.settings.run.grid_conditions, len(self.targets))
        chosen = torch.linspace(0, len(self.targets) - 1, count).long()
        condition, target = self.conditions[chosen], self.targets[chosen]
        noise = noise_for(SEED, 0, count, k, self.settings.network.noise_size)
        if temperature is not None:
            noise = noise * temperature[chosen, None, None]
        samples = draw(generator, condition, self.labels[chosen], noise.to(self.device))
        return [[condition[i], target[i], *samples[i]] for i in range(count)]

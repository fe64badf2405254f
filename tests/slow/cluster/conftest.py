"""One Ray cluster for all tests of this folder, with token authentication, and one whole run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.tiny_campaigns import write_campaign
from tests.support.tiny_runs import ROOT, aalnet, tiny_values, write_config, write_data

SIXTEEN = {"run.images": 64, "run.checkpoint_every_images": 8, "run.keep_last": 2}  # steps of 4


@pytest.fixture(scope="package")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=4) as running:
        yield running


@dataclass(frozen=True)
class Training:
    """A folder with data, settings files and runs, and how `aalnet train` is typed there."""

    folder: Path
    cluster: RayCluster

    def run(self, name: str) -> Run:
        return Run(FolderStore(self.folder / "store"), name)

    def config(self, name: str, overrides: dict[str, Any], data: str = "") -> str:
        """Write a settings file; its name."""
        values = tiny_values(self.folder / data, overrides)
        return write_config(self.folder / f"{name}.yaml", values).name

    def words(self, config: str, run: str, *more: str) -> list[str]:
        return ["train", config, "--run", run, "--storage", "store", *more]

    def train(self, config: str, run: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Train on the cluster to the end."""
        words = self.words(config, run, "--address", self.cluster.address, *more)
        environment = self.cluster.environment
        return aalnet(*words, cwd=self.folder, timeout_s=200, environment=environment)


@pytest.fixture(scope="package")
def training(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Training:
    made = Training(write_data(tmp_path_factory.mktemp("training")), cluster)
    made.config("sixteen", SIXTEEN | {"run.workers": 2})
    return made


@pytest.fixture(scope="package")
def whole(training: Training) -> subprocess.CompletedProcess[str]:
    """How the command ended that trained the run `whole` on two workers, undisturbed."""
    return training.train("sixteen.yaml", "whole")


LONG: dict[str, Any] = {  # a run that no test waits for
    "run.images": 40_000_000, "run.checkpoint_every_images": 96, "run.log_every_images": 48,
    "run.evaluate_every_images": 40_000_000,
}  # fmt: skip


@pytest.fixture(scope="package")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person has checked out, and would upload; with small data and a run without end."""
    made = tmp_path_factory.mktemp("checkout")
    for name in ("aalnet", "cluster", "deploy", "tuner", "configs", "data"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", made)
    write_data(made / "small")
    write_config(made / "tiny.yaml", tiny_values(Path("small"), LONG))
    write_campaign(made / "search.yaml", Path("small"), {"budget.trials": 2, "trials_at_once": 1})
    return made

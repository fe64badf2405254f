"""What makers of data sets share: pairs, their files, and a word on a missing package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from PIL import Image

from aalnet.errors import ConfigError
from cluster.data.packing import parquet
from cluster.data.pictures import png


@dataclass(frozen=True)
class Pair:
    """One row of a data set: square pictures of one size."""

    id: str
    label: str
    condition: Image.Image
    target: Image.Image


@dataclass(frozen=True)
class Split:
    """The pairs to train on, and the held-out ones."""

    train: list[Pair]
    test: list[Pair]


def write(split: Split, folder: Path) -> None:
    """`folder`/train.parquet and test.parquet, in the form of `aalnet data pack`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in (("train", split.train), ("test", split.test)):
        rows = [(pair.id, pair.label, png(pair.condition), png(pair.target)) for pair in pairs]
        (folder / f"{name}.parquet").write_bytes(parquet(rows))


def files_of(module: str, package: str) -> Traversable:
    """The folder of an installed module. ConfigError where it is not installed."""
    try:
        return resources.files(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"`{package}` is not installed: pip install {package}") from error

"""What an operator may ask for, and how each word of it must look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.operator.errors import ManifestError

MAX_NAME_CHARS = 47  # of a RayJob or RayService: KubeRay makes longer names of it
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][\w./-]*(:\d+/[\w./-]+)?(:(?P<tag>\w[\w.-]{0,127}))?"
                   r"(?P<digest>@sha256:[0-9a-f]{64})?", re.IGNORECASE)  # fmt: skip
STORAGE = re.compile(r"s3://[^/\s]+(/\S*)?")
WORKERS = re.compile(r"([1-9]\d{0,4})(?::([1-9]\d{0,4}))?")


@dataclass(frozen=True)
class DeployOptions:
    """What differs from the overlay; None and empty leave it as it is.

    Raises:
        ManifestError: a word has a wrong form.
    """

    image: str | None = None
    name: str | None = None
    settings: Sequence[str] = ()  # key=value
    config: Path | None = None  # a settings or campaign file in place of the overlay's
    workers: str | None = None  # N or MIN:MAX
    storage: str | None = None
    model: str | None = None
    namespace: str | None = None

    def __post_init__(self) -> None:
        check_name("--name", self.name)
        check_namespace(self.namespace)
        if self.image is not None:
            _check_image(self.image)
        if self.storage is not None and not STORAGE.fullmatch(self.storage):
            raise ManifestError(
                f"--storage must be s3://bucket/prefix, got `{self.storage}`: a folder would end "
                "with its pod"
            )
        if self.model is not None and not LABEL.fullmatch(self.model):
            raise ManifestError(
                f"--model must be at most 63 of a-z, 0-9 and -, got `{self.model}`; `aalnet "
                "promote` names models so"
            )
        if self.workers is not None:
            worker_range(self.workers)


def check_name(where: str, name: str | None) -> None:
    """A RayJob's or RayService's name, by KubeRay's rule. Raises ManifestError."""
    if name is not None and (len(name) > MAX_NAME_CHARS or not NAME.fullmatch(name)):
        raise ManifestError(
            f"{where} must be at most {MAX_NAME_CHARS} of a-z, 0-9 and -, a letter first, got "
            f"`{name}`: KubeRay makes longer names of it"
        )


def check_namespace(namespace: str | None) -> None:
    """Raises ManifestError where it is no namespace's name."""
    if namespace is not None and not LABEL.fullmatch(namespace):
        raise ManifestError(f"--namespace must be at most 63 of a-z, 0-9 and -, got `{namespace}`")


def worker_range(workers: str) -> tuple[int, int]:
    """Fewest and most of `N` or `MIN:MAX`. Raises ManifestError."""
    match = WORKERS.fullmatch(workers)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if least > most:
        raise ManifestError(f"--workers must be N or MIN:MAX with 1 <= MIN <= MAX, got `{workers}`")
    return least, most


def _check_image(image: str) -> None:
    match = IMAGE.fullmatch(image)
    if not match or not (match["digest"] or match["tag"]) or match["tag"] == "latest":
        raise ManifestError(
            f"--image must be NAME:TAG or NAME@sha256:.., and its tag not latest, got `{image}`: "
            "all pods must run the same code"
        )

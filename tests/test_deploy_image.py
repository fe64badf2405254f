"""The image's recipe: who it runs as, what it takes, and that nothing comes in without its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.dockerfile import ignored, parse
from tests.support.kubernetes_objects import OVERLAYS, pods, render

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = list(parse(DOCKERFILE))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
VARIANTS = ("cpu", "cuda")
IN_IMAGE = ("train", "tune", "serve")  # the extras that lock.sh names


def said(word: str) -> list[str]:
    return [rest for found, rest in INSTRUCTIONS if found == word]


def locked(variant: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package."""
    text = (ROOT / "deploy" / "requirements" / f"{variant}.txt").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?: {4}--hash=\S+(?: \\)?\n)+)", text, re.MULTILINE
    )
    found = {canonicalize_name(name): (v, hashes.count("sha256:")) for name, v, hashes in entries}
    assert len(found) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in split}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lock_has_the_constraints_versions_and_hashes(variant: str) -> None:
    found, constrained = locked(variant), pins()
    assert all(hashes for _, hashes in found.values())
    differing = {
        name: (version, constrained[name])
        for name, (version, _) in found.items()
        if name in constrained and version.partition("+")[0] != constrained[name]
    }
    assert differing == {}
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for extra in IN_IMAGE for line in extras[extra]]
    wanted += [Requirement(line) for line in PROJECT["dependencies"]]
    names = {canonicalize_name(item.name) for item in wanted} - {PROJECT["name"]}
    assert names <= set(found)


def test_variants_differ_by_cuda_alone() -> None:
    cpu, cuda = locked("cpu"), locked("cuda")
    assert set(cpu) < set(cuda)
    assert all(re.match(r"nvidia-|cuda-|triton", name) for name in set(cuda) - set(cpu))
    assert cpu["torch"][0] == f"{cuda['torch'][0]}+cpu"


def test_lock_names_no_registry() -> None:
    for file in [ROOT / "deploy" / "Dockerfile", *(ROOT / "deploy" / "requirements").iterdir()]:
        text = file.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", "")
        assert not re.search(r"https?://|index-url\b(?!.*ARG)|file:/", text), file.name


def test_only_hashed_wheels_are_installed() -> None:
    installs = [line for line in said("RUN") if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--only-binary :all:" in installs[0]
    assert "--no-deps" in installs[1]
    assert "--no-build-isolation" in installs[1]


def test_bases_and_user() -> None:
    assert [line.split()[0] for line in said("FROM")] == ["${BASE}", "${BASE}"]
    (base,) = [line for line in said("ARG") if line.startswith("BASE=")]
    assert not base.endswith("latest")
    assert ":" in base
    assert said("USER")[-1] == "10001:10001"
    users = {
        pod.spec["securityContext"]["runAsUser"]
        for overlay in OVERLAYS for pod in pods(render(f"overlays/{overlay}"))
    }  # fmt: skip
    assert users == {10001}


def test_labels_and_health() -> None:
    (labels,) = said("LABEL")
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f"VERSION={PROJECT['version']}" in said("ARG")
    assert "/healthz" in said("HEALTHCHECK")[0]


def test_context_holds_what_is_copied_and_no_more() -> None:
    copied = [line.split()[:-1] for line in said("COPY") if not line.startswith("--from")]
    sources = [source.replace("${VARIANT}", "cpu") for sources in copied for source in sources]
    assert [source for source in sources if ignored(source) or not (ROOT / source).exists()] == []
    for kept_out in (".git", ".venv", "aalnet-runs", "tests", "benchmarks", "deploy/kubernetes"):
        assert ignored(kept_out)
    packages = {name.partition(".")[0] for name in SETUPTOOLS["packages"]}
    assert packages <= set(sources)

"""The private names of Ray that the project leans on are there, and take what we give them."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import ray

from cluster.launch.ray_internals import INTERNALS
from tests.support.tiny_runs import ROOT

# Ray 2.60 warns of its own settings as it makes them (met 2026-11-23).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

PRIVATE = re.compile(r"\b_private\b|\b_internal\b|\b_raylet\b|internal_kv|_ray_version\b")


@pytest.mark.parametrize("name", INTERNALS)
def test_ray_has_it_as_we_use_it(name: str) -> None:
    module, uses = INTERNALS[name]
    where = f"Ray {ray.__version__}: cluster/launch/ray_internals.py uses {module}.{name}"
    try:
        internal = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{where}, which is not there: {error}")
    for member, parameters in uses.items():
        used = internal if member == "__call__" else getattr(internal, member, None)
        assert used is not None, f"{where}, which has no `{member}` any more"
        if not parameters:
            continue
        takes = inspect.signature(used).parameters
        missing = [parameter for parameter in parameters if parameter not in takes]
        assert not missing, f"{where}; its `{member}` takes {list(takes)}, not {missing}"


def test_a_job_servers_version_is_where_we_read_it() -> None:
    client = INTERNALS["SubmissionClient"]
    source = inspect.getsource(importlib.import_module(client.module).SubmissionClient)
    assert "self._server_ray_version = running_ray_version" in source, (
        "Ray's job client keeps the version elsewhere: cluster/launch/ray_internals.server_version"
    )


def test_no_other_module_uses_one() -> None:
    ours = [path for room in ("aalnet", "cluster", "tuner", "deploy") for path in
            Path(ROOT, room).rglob("*.py")]  # fmt: skip
    users = [
        str(path.relative_to(ROOT)) for path in ours if PRIVATE.search(path.read_text("utf-8"))
    ]
    assert users == ["cluster/launch/ray_internals.py"]

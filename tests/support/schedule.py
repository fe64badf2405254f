"""Which tests of a run side by side share a process: a module's, and those that load a machine.

xdist's own `--dist loadgroup` finds no groups under pytest 9.2, whose items have no `_nodeid`.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# One Ray cluster for all of the first; each of the others takes two cores for minutes, and beside
# each other they would be starved.
SHARED = ("tests/slow/cluster/", "tests/slow/test_hosts", "tests/slow/test_telemetry_live")


class ByModule(LoadScopeScheduling):
    """A module is one unit of work: what it shares is made once. SHARED is one too."""

    def _split_scope(self, nodeid: str) -> str:
        return "shared" if nodeid.startswith(SHARED) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """The slow ones come first, as they are collected: they take longest."""
    config.option.loadscopereorder = False
    return ByModule(config, log)

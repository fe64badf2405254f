"""Which tests of a run side by side share a process: a module's, and all that start Ray.

xdist's own `--dist loadgroup` finds no groups under pytest 9.2, whose items have no `_nodeid`.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Two Ray clusters on one machine take each other's time, and so do loads whose rates are compared.
ALONE = (
    "tests/slow/cluster/", "tests/slow/test_campaign_kills", "tests/slow/test_endpoint_server",
    "tests/slow/test_hosts", "tests/slow/test_telemetry_live", "tests/test_cluster_mailbox",
)  # fmt: skip


class ByModule(LoadScopeScheduling):
    """A module is one unit of work: what it shares is made once. Those above are one together."""

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if nodeid.startswith(ALONE) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """The slow ones come first, as they are collected: they take longest."""
    config.option.loadscopereorder = False
    return ByModule(config, log)

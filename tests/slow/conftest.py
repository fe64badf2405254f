"""Every test below is slow; those that start Ray run one after the other, on one worker of xdist.

Two Ray clusters on one machine take each other's time, and so do loads whose rates are compared.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALONE = ("cluster/", "test_campaign_kills", "test_endpoint_server", "test_hosts", "test_ports",
         "test_telemetry_live", "test_training")  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before xdist groups by these marks, and `-m` selects by them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if item.path.relative_to(HERE).as_posix().startswith(ALONE):
                item.add_marker(pytest.mark.xdist_group("alone"))

"""Every test below is slow; those that start Ray run one after the other, on one worker of xdist.

Two Ray clusters on one machine take each other's time, and so do loads whose rates are compared.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
ALONE = ("cluster/", "test_campaign_kills", "test_endpoint_server", "test_hosts",
         "test_telemetry_live")  # fmt: skip
TIMEOUT_S = 400  # the first test waits for what its module shares
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-unsafe-swiftshader",
]  # fmt: skip


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test as it is collected: xdist has grouped them before `modifyitems` is called."""
    item.add_marker(pytest.mark.slow)
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    if item.path.relative_to(HERE).as_posix().startswith(ALONE):
        item.add_marker(pytest.mark.xdist_group("alone"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window. Not for longer: playwright keeps the thread's loop."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield browser
        browser.close()

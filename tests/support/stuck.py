"""A test that goes on after its time-out ends its process, which tells where each thread is.

pytest-timeout raises once, in the main thread. What then waits without end (a `with` around
threads that wait for each other, a finalizer) would hold the whole run, and say nothing.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Generator

import pytest

PATIENCE = 2.0  # times the test's own limit


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit_s = limit_of_s(item)
    if limit_s == 0:  # as for a debugger
        return (yield)
    timer = threading.Timer(PATIENCE * limit_s, _end, (item,))
    timer.daemon = True
    timer.name = "stuck"
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()
        timer.join()


def limit_of_s(item: pytest.Item) -> float:
    """The time-out of a test: its own, the command's or the project's; 0: none."""
    marker = item.get_closest_marker("timeout")
    given = marker.args[0] if marker else item.config.getoption("timeout")
    return float(item.config.getini("timeout") or 0) if given is None else float(given)


def _end(item: pytest.Item) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    print(f"\nstuck after its time-out: {item.nodeid}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(1)

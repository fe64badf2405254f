"""Work in a thread while a block runs."""

import threading
import time

import pytest

from cluster.background import in_background


def test_the_work_ends_with_the_block() -> None:
    done: list[str] = []

    def work(ended: threading.Event) -> None:
        ended.wait()
        done.append(threading.current_thread().name)

    with in_background(work, "mine"):
        assert done == []
    assert done == ["mine"]


def test_the_blocks_error_ends_the_work_and_is_told() -> None:
    seen: list[bool] = []

    def work(ended: threading.Event) -> None:
        seen.append(ended.wait(60))

    with pytest.raises(KeyError, match="mine"), in_background(work, "work"):
        raise KeyError("mine")
    assert seen == [True]


def test_work_that_does_not_end_is_waited_for_so_long_only() -> None:
    free = threading.Event()

    def stubborn(_: threading.Event) -> None:
        free.wait(60)

    started_s = time.monotonic()
    with in_background(stubborn, "stubborn", patience_s=0.05):
        pass
    assert time.monotonic() - started_s < 30
    assert any(thread.name == "stubborn" for thread in threading.enumerate())
    free.set()

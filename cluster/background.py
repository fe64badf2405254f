"""Work in a thread while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def in_background(
    work: Callable[[threading.Event], None], name: str, patience_s: float | None = None
) -> Iterator[None]:
    """Run `work` in a thread called `name` until the block ends.

    `work` is given the event that is set then, and returns soon after it; that is waited for,
    `patience_s` at most where given.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(patience_s)

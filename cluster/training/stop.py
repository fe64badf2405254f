"""Ctrl-C and SIGTERM: the first asks for a last checkpoint, the second ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(SystemExit):
    """A command ended as it was asked to by a signal, and has said so."""


class Stop:
    """While it is entered, in the main thread, signals go to `on_stop` of the training in it.

    Before training can be asked, and from the second signal on, the process ends at once.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._on_stop: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self, on_stop: Callable[[], None] | None) -> None:
        """From now on a signal calls this; None: there is nothing to save any more."""
        self._on_stop = on_stop
        self._install()  # ray.init puts handlers of its own, which end the process

    def now(self) -> None:
        """Stop training as a signal would, for a reason that the caller tells."""
        if self._on_stop is not None:
            self._on_stop()

    @property
    def exit_code(self) -> int:
        """As shells do: 128 and the signal's number."""
        return 128 + (self.by or 0)

    def _install(self) -> dict[signal.Signals, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._handle) for number in NAMES}

    def _handle(self, number: int, _: FrameType | None) -> None:
        first, self.by = self.by is None, signal.Signals(number)
        if first and self._on_stop is not None:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            print(f"{NAMES[self.by]}: stopping after a checkpoint{again}", file=sys.stderr)
            self._on_stop()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif first:
            raise SystemExit(self.exit_code)  # a second SIGTERM: the first is being obeyed

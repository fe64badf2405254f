"""A writer whose storage holds each write until it is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.runs.run import Run
from tests.support.saver_books import Books, Gated, bookkeeping


@pytest.fixture
def store(tmp_path: Path) -> Gated:
    return Gated(tmp_path)


@pytest.fixture
def run(store: Gated) -> Run:
    return Run(store, "demo")


@pytest.fixture
def open_books(
    run: Run, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Books]]:
    with bookkeeping(run, store, monkeypatch) as books:
        yield books

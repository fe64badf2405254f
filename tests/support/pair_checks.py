"""Checks that tests of data sets share: a refusal in one line, and every pair read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aalnet.errors import DataError
from cluster.data.pairs import Pairs


def refused(call: Callable[[], object], *words: str) -> str:
    """The message of the DataError that `call` raises: one line that holds all words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert caught.value.exit_code == 2
    return message


def read_all(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every pair, in order."""
    return [pairs.pair(row) for row in range(len(pairs))]

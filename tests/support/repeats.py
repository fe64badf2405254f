"""How often a proof is repeated: a few times for every change, many times in `make proof`."""

import os

LONG = os.environ.get("AALNET_PROOF") == "1"


def repeats(few: int, many: int) -> int:
    """`few`, or `many` in `make proof`."""
    return many if LONG else few

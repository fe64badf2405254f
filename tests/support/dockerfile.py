"""A Dockerfile's instructions, and what .dockerignore keeps out."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile: comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def ignored(name: str) -> bool:
    """Does .dockerignore keep it out? The last pattern that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            parents = [name, *map(str, Path(name).parents)]
            if any(fnmatch.fnmatch(part, pattern) for part in parents if part != "."):
                out = not line.startswith("!")
    return out

"""Options that the commands of campaigns share."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

DEFAULT_STORAGE = "./aalnet-runs"
StudyUrl = Annotated[
    str | None,
    typer.Option(
        "--study", help="postgresql:// URL of the study; default: a journal in the storage",
        envvar="AALNET_STUDY", metavar="URL",
    ),
]  # fmt: skip


def storage_flag(storage: str) -> str:
    """The option that a next command needs, to name this storage."""
    return "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"

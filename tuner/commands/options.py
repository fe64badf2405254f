"""Options that the commands of campaigns share."""

from __future__ import annotations

from typing import Annotated

import typer

Study = Annotated[
    str | None,
    typer.Option(
        "--study", help="postgresql:// URL of the study; default: a journal in the storage",
        envvar="AALNET_STUDY", metavar="URL",
    ),
]  # fmt: skip

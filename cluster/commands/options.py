"""Options that several commands share, so that they are spelt alike everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="override a setting: objective.eta=0.3", metavar="KEY=VALUE"),
]
Storage = Annotated[
    str,
    typer.Option(
        help="folder or s3://bucket/prefix that holds the runs",
        envvar="AALNET_STORAGE",
        metavar="URI",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="join a running Ray cluster", envvar="RAY_ADDRESS", metavar="ADDRESS"),
]
Temperature = Annotated[
    float, typer.Option(help="noise times this: above 1 more varied, below 1 more alike")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def with_workers(overrides: list[str] | None, workers: str | None) -> list[str]:
    """The `--set` values of a command, `--workers` among them."""
    return [*(overrides or []), *([] if workers is None else [f"run.workers={workers}"])]

"""The checks of `aalnet doctor` and `aalnet deploy doctor`, and how they are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import typer
from rich.console import Console
from rich.text import Text

from cluster.view.progress import printable

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
NAME_COLUMNS = 14


@dataclass(frozen=True)
class Check:
    """One check's result; `remedy` is the next move where it is not ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def print_checks(checks: Iterable[Check], as_json: bool) -> None:
    """Print each check as soon as it is known; or, as JSON, all at the end.

    Raises:
        typer.Exit: 1, if one has failed.
    """
    results: list[Check] = []
    for check in checks:
        results.append(check)
        if not as_json:
            _print(check)
    failed = any(check.status == "fail" for check in results)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in results]}, indent=2))
    if failed:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    line = Text.assemble(
        (f"{check.status:>4}", COLOURS[check.status]), f"  {check.name:<{NAME_COLUMNS}}",
        printable(check.detail),
    )  # fmt: skip
    if check.remedy and check.status != "ok":
        line.append(f"\n{'':>{6 + NAME_COLUMNS}}{printable(check.remedy)}", style="dim")
    Console(highlight=False, soft_wrap=True).print(line)

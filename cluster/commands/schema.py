"""`aalnet schema`: the JSON schema of a settings file, for editors."""

from __future__ import annotations

import json

import typer

from aalnet.settings import settings_schema

app = typer.Typer(add_completion=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of a settings file.

    Save it as configs/settings.schema.json and name it in a file's first line:
    `# yaml-language-server: $schema=settings.schema.json`.
    """
    print(json.dumps(settings_schema(), indent=2))

"""`aalnet schema`: every setting, for editors (JSON schema) and for people (a table)."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from aalnet.settings import Settings, settings_schema

app = typer.Typer(add_completion=False)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="tables for people")] = False,
) -> None:
    """Print the JSON schema of a settings file, or its settings as tables.

    For an editor, save it beside the file and name it in the file's first line:
    `# yaml-language-server: $schema=settings.schema.json`.
    """
    every = settings_schema()
    print(markdown_of(every) if markdown else json.dumps(every, indent=2))


def markdown_of(schema: dict[str, Any]) -> str:
    """docs/settings.md: one table per section, one row per setting."""
    lines = [
        "# Settings",
        "",
        "Made by `aalnet schema --markdown`. Every setting of a YAML file, with its default; any",
        "can be overridden by `--set section.key=value`. An unknown key is an error.",
        "",
        f"`model`: {_choices(schema['properties']['model'])}, default `{Settings().model}`.",
    ]
    defaults = Settings().to_dict()
    for section, values in defaults.items():
        if not isinstance(values, dict):
            continue
        definition = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        lines += ["", f"## {section}", "", definition["description"], ""]
        lines += ["| setting | default | takes | meaning |", "|---|---|---|---|"]
        for key, default in values.items():
            field = definition["properties"][key]
            meaning = field.get("description", "")
            if default is None and section == "network":
                default = "from the preset"
            lines.append(
                f"| `{section}.{key}` | {_text(default)} | {_choices(field)} | {meaning} |"
            )
    return "\n".join(lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and " " in value else f"`{json.dumps(value)}`"


def _choices(field: dict[str, Any]) -> str:
    """What a field takes: choices, or a type with its bounds."""
    if "anyOf" in field:
        return " or ".join(_choices(part) for part in field["anyOf"] if part.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_choices(field['items'])}"
    if "pattern" in field:
        return "`auto` or `MIN:MAX`"  # the one text of a form of its own
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    names = {"number": "number", "integer": "whole number", "boolean": "true or false",
             "string": "text"}  # fmt: skip
    limits = [f"{sign} {field[name]:.6g}" for name, sign in bounds.items() if name in field]
    limits = [limit for limit in limits if "e+18" not in limit]
    return " ".join([names[field["type"]], ", ".join(limits)]).strip()

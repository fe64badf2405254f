"""The JSON schema of a campaign's file, for editors."""

from __future__ import annotations

from typing import Any

from aalnet.settings import settings_schema
from tuner.settings import CampaignSettings


def campaign_schema() -> dict[str, Any]:
    """As the loader takes it: `base` is a settings file's name, or settings, or both."""
    schema = CampaignSettings.model_json_schema()
    run = settings_schema()
    schema["$defs"] |= run.pop("$defs")
    run["properties"]["file"] = {"type": "string", "description": "a settings file beside this one"}
    base = schema["properties"]["base"]["description"]
    schema["properties"]["base"] = {"description": base, "anyOf": [{"type": "string"}, run]}
    del schema["required"]
    return schema

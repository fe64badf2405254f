"""Settings from a file's text and `--set` words, and what is said of those that are refused."""

from __future__ import annotations

import pytest

from aalnet.errors import ConfigError, UserError
from aalnet.settings import Settings, parse_settings
from aalnet.yaml_io import apply_overrides, parse_mapping


def load(text: str, *overrides: str) -> Settings:
    """A run's settings from its file's text and the `--set` words."""
    return parse_settings(apply_overrides(parse_mapping(text, "run.yaml"), overrides))


def refusal(text: str, *overrides: str) -> str:
    """What is said of settings that cannot be; the error is the user's, of exit code 2."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    return str(caught.value)

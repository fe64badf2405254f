"""Who is compared: models by name, each with the shared settings or with its own tuned file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from aalnet.errors import ConfigError
from aalnet.settings import Settings, parse_settings
from aalnet.yaml_io import apply_overrides, read_mapping

KNOWN: tuple[str, ...] = get_args(Settings.model_fields["model"].annotation)
# What makes the task: the same for all, whatever a model was tuned on.
TASK = (
    "data.train", "data.test", "data.size_px", "network.preset", "network.blocks", "network.widths",
    "network.encoder_blocks", "network.decoder_blocks", "network.embedding_size",
)  # fmt: skip
SHARED = ("run", "evaluation", "failures", "telemetry")


@dataclass(frozen=True)
class Contestant:
    """A model with its settings; its runs differ in their seeds alone."""

    name: str
    settings: Settings
    file: str | None = None  # of its own tuned settings

    def with_run(self, **values: int) -> Settings:
        """Its settings with other values of `run`: images, seed."""
        plain = self.settings.to_dict()
        plain["run"] |= values
        return parse_settings(plain)


def named(models: str) -> dict[str, str | None]:
    """`aalnet,vae=FILE` as names with their files.

    Raises:
        ConfigError: none or one twice, or a name that is no model and has no file.
    """
    parts = [part.strip().partition("=") for part in models.split(",") if part.strip()]
    names = [name for name, _, _ in parts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--models must name models, each once, got `{models}`")
    for name, equals, file in parts:
        if name not in KNOWN and not file:
            raise ConfigError(
                f"--models must name some of {', '.join(KNOWN)}, got `{name}`; another name needs "
                f"a settings file: {name}=FILE"
            )
        if equals and not file:
            raise ConfigError(f"--models wants NAME=FILE, got `{name}=`")
    return {name: file or None for name, _, file in parts}


def contestants(
    config: str, models: str, overrides: Sequence[str], folder: Path = Path()
) -> list[Contestant]:
    """Everyone's settings: the file's, or a model's own with the task and the run of the file.

    `overrides` hold for every file; a model's own file is looked for in `folder`.

    Raises:
        ConfigError: settings that cannot be, or a file of another task.
    """
    values = apply_overrides(read_mapping(config), overrides)
    found = []
    for name, file in named(models).items():
        if file is None:
            found.append(Contestant(name, parse_settings({**values, "model": name})))
        else:
            own = apply_overrides(read_mapping(folder / file), overrides)
            settings = _tuned(name, file, own, config, parse_settings(values))
            found.append(Contestant(name, settings, file))
    return found


def _tuned(name: str, file: str, own: dict[str, Any], config: str, shared: Settings) -> Settings:
    """A model's own settings on the shared task."""
    merged, task = parse_settings(own).to_dict(), shared.to_dict()
    if name in KNOWN and merged["model"] != name:
        raise ConfigError(
            f"`{file}` is of model {merged['model']}, --models says {name}; give the file that "
            f"belongs to {name}"
        )
    for dotted in TASK:
        section, key = dotted.split(".")
        if key in (own.get(section) or {}) and merged[section][key] != task[section][key]:
            raise ConfigError(
                f"`{file}` has {dotted} {merged[section][key]!r}, `{config}` has "
                f"{task[section][key]!r}; all models must face the same task: change one, or "
                f"give both --set {dotted}=..."
            )
        merged[section][key] = task[section][key]
    return parse_settings({**merged, **{section: task[section] for section in SHARED}})

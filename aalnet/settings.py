"""Settings: read from YAML once, checked once, frozen plain data afterwards.

`load_settings` is the only reader. Keys keep the article's names (`lambda`, `eta`, `beta`,
`gamma`, `K`); a unit stands in each name that has one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from aalnet.model_settings import (
    NetworkSettings,
    ObjectiveSettings,
    OptimizerSettings,
)
from aalnet.run_settings import (
    DataSettings,
    EvaluationSettings,
    FailureSettings,
    RetryCause,
    RunSettings,
    TelemetrySettings,
)
from aalnet.section import Section
from aalnet.yaml_io import apply_overrides, read_mapping, validate

__all__ = [
    "DataSettings",
    "EvaluationSettings",
    "FailureSettings",
    "NetworkSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "RetryCause",
    "RunSettings",
    "Settings",
    "TelemetrySettings",
    "identity",
    "load_settings",
    "parse_settings",
    "settings_schema",
]


class Settings(Section):
    """Everything that decides a run. `digest()` covers all but where and how long it runs."""

    model: Literal["aalnet", "vae", "gan", "vae-gan"] = "aalnet"
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()
    failures: FailureSettings = FailureSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        fewest, most = self.run.worker_range or (0, 0)
        if fewest > most:
            raise ValueError(f"run.workers must be MIN:MAX with MIN <= MAX, got {fewest}:{most}")
        if most > self.data.batch_images:
            raise ValueError(
                f"run.workers must be <= data.batch_images ({self.data.batch_images}), "
                f"got {most}: each worker needs a condition of every batch"
            )
        widths = self.network.widths
        if widths is not None and self.data.size_px >> (len(widths) - 1) < 4:
            raise ValueError(
                f"network.widths must have at most {self.data.size_px.bit_length() - 2} levels "
                f"at data.size_px {self.data.size_px}, got {len(widths)}"
            )
        objective = self.objective
        if self.model == "aalnet" and not objective.proposal and objective.entropy_from:
            raise ValueError(
                "objective.entropy_from must be 0 where objective.proposal is false, got "
                f"{objective.entropy_from}: until then nothing would train G"
            )
        if self.data.shift_px >= self.data.size_px // 2:
            raise ValueError(
                f"data.shift_px must be < half of data.size_px, got {self.data.shift_px}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of the YAML file."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 over every setting that a run may not change when it is resumed."""
        text = json.dumps(identity(self.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


RESUMABLE_SECTIONS = frozenset({"evaluation", "failures", "telemetry"})
RESUMABLE_KEYS = frozenset({"data.memory_budget_mib", "data.cache_gib", *(f"run.{key}" for key in (
    "checkpoint_every_images", "evaluate_every_images", "log_every_images", "keep_last",
    "keep_best", "keep_every", "best_by", "workers", "threads", "device", "grid_conditions",
))})  # fmt: skip


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings (dotted keys) without those that a resumed run may change."""
    flat = {
        f"{section}.{key}": value
        for section, values in settings.items()
        if isinstance(values, dict) and section not in RESUMABLE_SECTIONS
        for key, value in values.items()
    }
    flat = {key: value for key, value in flat.items() if key not in RESUMABLE_KEYS}
    return {"model": settings["model"], **flat}


def load_settings(path: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown (with a "did you
            mean"), a value has a wrong type or is out of range.
    """
    return parse_settings(apply_overrides(read_mapping(path), overrides))


def parse_settings(values: dict[str, Any]) -> Settings:
    """Check plain data as it stands in YAML or in a checkpoint's `state.json`."""
    return validate(Settings, values)


def settings_schema() -> dict[str, Any]:
    """JSON schema of a settings file, for editors."""
    return Settings.model_json_schema(by_alias=True)

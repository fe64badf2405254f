"""A campaign's file: read once, checked once. Every setting that it varies is checked as a run's.

campaign.yaml in the campaign's storage is the same file with everything filled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from aalnet.errors import ConfigError
from aalnet.run_settings import FigureName
from aalnet.section import Count, Positive, Section
from aalnet.settings import Settings, identity, parse_settings
from aalnet.yaml_io import apply_overrides, read_mapping, validate
from tuner.dotted import flat, with_values
from tuner.space import Choice, Choices, Range

KERNEL_DISTANCE = "kid_unpaired"
# `kid` of a file means KERNEL_DISTANCE and is stored as that. In what was stored before, it means
# the biased figure, as `kid_lite0` does: such a campaign can be read, and not gone on with.
SearchFigure = FigureName | Literal["kid_unpaired", "kid_lite0"]


class SearchObjective(Section):
    """A figure of the evaluation, and which way is better."""

    figure: SearchFigure = Field(
        "energy_score", description="to improve; kid: the kernel distance, whatever its features"
    )
    direction: Literal["minimise", "maximise"] = Field(
        "minimise", description="which way is better; maximise for diversity, ssim and psnr"
    )

    @property
    def minimises(self) -> bool:
        """Is less better?"""
        return self.direction == "minimise"

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return (min if self.minimises else max)(values)

    def rank(self, value: float) -> float:
        """A key to sort by: the best value comes first."""
        return value if self.minimises else -value


class BudgetSettings(Section):
    """When a campaign ends."""

    trials: Count = Field(20, description="trials in all, failed ones included")
    images: Count = Field(14_400, description="images of a trial; few, if they still rank")
    seconds: Positive | None = Field(None, description="seconds over all starts; default: any")


class SamplerSettings(Section):
    """Where suggestions come from."""

    kind: Literal["tpe", "random", "nsga2"] = Field(
        "tpe",
        description="tpe learns from earlier trials, random does not; nsga2: several objectives",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the suggestions; the same seed and results give the same ones"
    )
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        8, description="random trials before it learns"
    )


class PruningSettings(Section):
    """Which trials are stopped early. Rungs are images, and multiples of an evaluation."""

    kind: Literal["none", "asha", "median"] = "asha"
    first_rung_images: Count | None = Field(
        None, description="images before the first stop; raise it where good runs start slowly"
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        2, description="asha: the best 1/reduction of a rung go on, to reduction times the images"
    )
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        4, description="median: first trials never stopped"
    )


class RepeatSettings(Section):
    """The best trials are run again with other seeds, and ranked by their mean."""

    top: Annotated[int, Field(ge=0)] = Field(2, description="best trials run again; 0: none")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(strict=False)] = (
        1,
        2,
    )


EVALUATED = ("evaluation.", "run.evaluate_every_images", "run.checkpoint_every_images")
SPACE: dict[str, Any] = {
    "objective.lambda": {"low": 0.3, "high": 30.0, "log": True},
    "objective.eta": {"low": 0.05, "high": 1.0, "log": True},
    "objective.beta": {"low": 0.01, "high": 1.0, "log": True},
    "objective.gamma": {"low": 1e-8, "high": 1e-5, "log": True},
    "objective.K": {"choices": [2, 4, 8]},
}


class CampaignSettings(Section):
    """Everything that decides a campaign."""

    base: dict[str, Any] = Field(
        description="settings of every trial; `file` names a settings file, other keys change it"
    )
    space: dict[str, Range | Choices] = Field(
        default_factory=lambda: {key: _dimension(value) for key, value in SPACE.items()},
        min_length=1, description="dotted names of settings, each with a range or choices to try",
    )  # fmt: skip
    objectives: Annotated[tuple[SearchObjective, ...], Field(strict=False, min_length=1)] = (
        SearchObjective(),
    )
    first: Annotated[tuple[dict[str, Choice], ...], Field(strict=False)] | None = Field(
        None, description="values tried first, such as known good ones; default: the base's own"
    )
    warm_start: str | None = Field(None, description="campaign whose best trials are tried first")
    budget: BudgetSettings = BudgetSettings()
    sampler: SamplerSettings = SamplerSettings()
    pruning: PruningSettings = PruningSettings()
    repeats: RepeatSettings = RepeatSettings()
    trials_at_once: Count | Literal["auto"] = "auto"
    workers: Count = Field(1, description="training processes of a trial; more for large networks")
    failures_in_a_row: Count = Field(4, description="failed trials in a row that end it")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        several = len(self.objectives) > 1
        if several and self.pruning.kind != "none":
            raise ValueError(
                f"pruning.kind must be none with {len(self.objectives)} objectives, got "
                f"{self.pruning.kind}: no trial is simply worse than another"
            )
        if self.sampler.kind == "nsga2" and not several:
            raise ValueError("sampler.kind nsga2 needs several objectives; use tpe")
        if len({objective.figure for objective in self.objectives}) < len(self.objectives):
            raise ValueError("objectives: the same figure stands twice")
        return self

    def run_settings(self, values: dict[str, Any], seed: int | None = None) -> Settings:
        """The settings of a run of this campaign with these values of the searched ones."""
        own = {
            "run.workers": 0 if self.workers == 1 else self.workers,
            "run.images": self.budget.images,
            "telemetry.linger_s": 0.0,  # the next trial waits for nobody
        }
        seeded = {} if seed is None else {"run.seed": seed}
        return parse_settings(with_values(self.base, own | values | seeded))

    @property
    def first_rung_images(self) -> int:
        """Where pruning begins: its own setting, but not before the first evaluation."""
        run = self.run_settings({}).run
        every = run.evaluate_every_images or run.checkpoint_every_images
        return max(self.pruning.first_rung_images or 0, every)

    @property
    def repeat_seeds(self) -> tuple[int, ...]:
        """Seeds of the repeats: the trial itself had the base's."""
        own = self.run_settings({}).run.seed
        front = len(self.objectives) > 1  # which of it is best is its owner's choice
        return () if front else tuple(seed for seed in self.repeats.seeds if seed != own)

    def defaults(self) -> dict[str, Any]:
        """The base's own values of what is searched."""
        values = flat(self.run_settings({}).to_dict())
        return {key: values[key] for key in self.space}

    def decides(self) -> dict[str, Any]:
        """What may not change once a campaign has begun, flat."""
        plain = self.to_dict()
        run = self.run_settings({}).to_dict()
        values = flat(run)
        del run["run"]["images"]  # of the budget
        base = identity(run) | {key: values[key] for key in values if key.startswith(EVALUATED)}
        return {
            **{f"base.{key}": value for key, value in base.items()},
            "budget.images": self.budget.images,
            **{f"space.{key}": value for key, value in plain["space"].items()},
            "objectives": plain["objectives"],
            "pruning": plain["pruning"],
            "sampler": plain["sampler"],
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain data, everything filled in."""
        return self.model_dump(mode="json")


def load_campaign(path: Path | str, overrides: Sequence[str] = ()) -> CampaignSettings:
    """Read a campaign's file. `base` may name a settings file beside it, and change some of it.

    Raises:
        ConfigError: a key is unknown, a value has a wrong type or is out of range; here, in the
            base, or at an end of a searched range.
    """
    return measured(parse_campaign(apply_overrides(read_campaign(path), overrides)))


def measured(settings: CampaignSettings) -> CampaignSettings:
    """The settings of a person's file, by figures that evaluations report today.

    Raises:
        ConfigError: a figure is no longer reported.
    """
    if any(objective.figure == "kid_lite0" for objective in settings.objectives):
        raise ConfigError(
            "objectives: kid_lite0 was a biased estimate and is no longer measured; search by "
            "energy_score or kid"
        )
    kid = {"figure": KERNEL_DISTANCE}
    objectives = [
        e.model_copy(update=kid if e.figure == "kid" else {}) for e in settings.objectives
    ]
    return settings.model_copy(update={"objectives": tuple(objectives)})


def read_campaign(path: Path | str) -> dict[str, Any]:
    """A campaign's file as plain data, with the base's own file read into it."""
    values = read_mapping(path)
    base = values.get("base") or {}
    if isinstance(base, str):
        base = {"file": base}
    if isinstance(base, dict) and isinstance(base.get("file"), str):
        changes = {key: value for key, value in base.items() if key != "file"}
        values["base"] = with_values(read_mapping(Path(path).parent / base["file"]), flat(changes))
    return values


def parse_campaign(values: dict[str, Any]) -> CampaignSettings:
    """Check plain data as it stands in a campaign's file."""
    plain = {"base": {}, **values}
    if isinstance(plain.get("space"), dict):
        plain["space"] = {key: _dimension(value, key) for key, value in plain["space"].items()}
    if not isinstance(plain["base"], dict):
        raise ConfigError(f"base must be a settings file's name or settings, got {plain['base']!r}")
    settings = validate(CampaignSettings, plain)
    _check_values(settings)
    return settings


def _dimension(value: Any, key: str = "") -> Range | Choices:
    if not isinstance(value, dict) or not {"choices", "low"} & set(value):
        raise ConfigError(
            f"space.{key} must be {{low: .., high: .., log: true}} or {{choices: [..]}}, "
            f"got {value!r}"
        )
    try:
        return validate(Choices, value) if "choices" in value else validate(Range, value)
    except ConfigError as error:
        raise ConfigError(f"space.{key}: {error}") from None


def _check_values(settings: CampaignSettings) -> None:
    """The base, and every value that the space or `first` could give, by the runs' own loader."""
    base = settings.run_settings({})
    names = flat(base.to_dict()).keys()
    for key, dimension in settings.space.items():
        ends = (
            dimension.choices if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        )
        for value in ends:
            try:
                settings.run_settings({key: value})
            except ConfigError as error:
                raise ConfigError(f"space.{key}, value {value!r}: {error}") from None
        if key in {"run.images", "run.seed", "run.workers"}:
            raise ConfigError(
                f"space.{key} cannot be searched: budget.images, repeats.seeds and workers "
                "decide it"
            )
        if key not in names:
            raise ConfigError(f"space.{key} is a group of settings; name one of them")
    for number, values in enumerate(settings.first or ()):
        unknown = [key for key in values if key not in settings.space]
        if unknown:
            raise ConfigError(f"first[{number}].{unknown[0]} is not in the space; add it there")
        settings.run_settings(dict(values))
    first = settings.first_rung_images
    if settings.pruning.kind != "none" and first >= settings.budget.images:
        raise ConfigError(
            f"pruning.kind {settings.pruning.kind} can stop nothing: the first evaluation is at "
            f"{first:,} images and a trial ends at {settings.budget.images:,}; "
            "lower run.checkpoint_every_images of the base, or set pruning.kind=none"
        )


def finite(value: object) -> bool:
    """Is it a number that a study may hold?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

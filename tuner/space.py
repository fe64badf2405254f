"""What a campaign may vary: a range of numbers, or some choices."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from aalnet.section import Section

Number = Annotated[float, Field(allow_inf_nan=False)]
Choice = bool | int | float | str


class Range(Section):
    """Numbers from `low` to `high`; whole ones where both bounds are whole and `log` is off."""

    low: int | Number
    high: int | Number
    log: bool = Field(False, description="try every order of magnitude alike; for weights and lr")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must start above 0, got {self.low}")
        return self


class Choices(Section):
    """One of several values."""

    choices: Annotated[tuple[Choice, ...], Field(strict=False, min_length=1)]

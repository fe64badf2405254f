"""What all groups of settings share: strict, frozen, with ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # limits: a hostile checkpoint names sizes too
Blocks = Annotated[int, Field(ge=1, le=64)]
Widths = Annotated[tuple[Width, ...], Field(strict=False, min_length=2, max_length=8)]


class Section(BaseModel):
    """A frozen, strict group of settings: unknown keys and silent casts are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

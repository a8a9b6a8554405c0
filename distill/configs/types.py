"""Ranges that settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Scalar = str | int | float | bool | None
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
LossWeight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a loss or a term of it; far beyond, float32 overflows."""
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Of a softmax: below, its arguments overflow; above, all that it compares looks the same."""
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0, le=1)]
"""A part of the whole, 0 < share <= 1."""

"""Ranges that settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Scalar = str | int | float | bool | None
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0, le=1)]
"""A part of the whole, 0 < share <= 1."""

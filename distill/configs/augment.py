"""Settings of random views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from distill.configs.types import Share, Weight
from dreamshard.config.reads import When
from dreamshard.errors import Problem


@dataclass(kw_only=True)
class AugmentConfig:
    """Random views of a batch's images, drawn per sample on the training device."""

    reads: ClassVar = (
        When("with jitter above 0", "jitter_chance", lambda augment: any(augment.jitter), "jitter"),
    )

    crop_scale: list[Share] = field(default_factory=lambda: [0.2, 1.0])
    """Smallest and largest share of the image's area that a random resized crop keeps (0..1]."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance of a mirrored view (0..1)."""
    jitter: list[Weight] = field(default_factory=lambda: [0.4, 0.4, 0.4, 0.1])
    """Strengths of brightness, contrast, saturation and hue changes; hue is at most 0.5."""
    jitter_chance: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Chance of a view to be jittered (0..1)."""
    grayscale: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Chance of a gray view (0..1)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        if len(self.crop_scale) != 2 or self.crop_scale != sorted(self.crop_scale):
            allowed = "two shares, the smaller first"
            problems.append(Problem("crop_scale", str(self.crop_scale), allowed, "Try [0.2, 1.0]."))
        if len(self.jitter) != 4 or self.jitter[3] > 0.5:
            allowed = "four strengths, the last at most 0.5"
            problems.append(
                Problem("jitter", str(self.jitter), allowed, "Try [0.4, 0.4, 0.4, 0.1].")
            )
        return problems

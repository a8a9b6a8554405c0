"""Settings of the monitor, a look at the student while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.configs.types import Count
from dreamshard.errors import Problem
from pipeline.images import ImageConfig, SourceConfig


@dataclass(kw_only=True)
class MonitorConfig:
    """A k-NN or linear probe on labelled images, every so many steps."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps from one look to the next, a multiple of log_every; 0: never."""
    kind: Literal["knn", "probe"] = "knn"
    """knn (k nearest neighbours) or probe (logistic regression), on the deepest map's mean."""
    train_images: SourceConfig = field(default_factory=lambda: SourceConfig(split="train"))
    """Labelled images to fit on."""
    heldout_images: SourceConfig = field(default_factory=lambda: SourceConfig(split="heldout"))
    """Labelled images to judge on."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the student's size."""
    samples: Count = 2000
    """Images of either source to use at most, the first ones (count)."""
    neighbours: Count = 20
    """Neighbours k of knn (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if self.neighbours > self.samples:
            return [Problem("neighbours", str(self.neighbours), f"1..{self.samples}, the samples")]
        return []

"""Settings of the monitor, a look at the student while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.configs.types import Count
from dreamshard.errors import Problem
from pipeline.images.source import ImageConfig, SourceConfig


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
    """How images are brought to the size of the training images; its own size stays 0."""
    samples: Count = 2000
    """Images of either source to use at most, the first ones (count)."""
    neighbours: Count = 20
    """Neighbours k of knn (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        found = []
        if self.neighbours > self.samples:
            allowed = f"1..{self.samples}, the samples"
            found.append(Problem("neighbours", str(self.neighbours), allowed))
        if self.image.size:
            allowed = "0, the size of the training images"
            found.append(Problem("image.size", str(self.image.size), allowed))
        return found

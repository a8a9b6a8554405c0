"""Settings of the monitor, a look at the student while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.types import Count
from dreamshard.config.reads import Table, When
from dreamshard.errors import Problem
from pipeline.images.source import SourceConfig


@dataclass(kw_only=True)
class MonitorConfig:
    """A k-NN or linear probe on labelled images at the training images' size, now and then."""

    reads: ClassVar = (
        When(
            "with every above 0",
            "kind train_images heldout_images samples neighbours",
            lambda monitor: monitor.every > 0,
            "every",
        ),
        Table("kind", {"knn": "neighbours"}),
    )

    every: Annotated[int, Field(ge=0)] = 0
    """Steps from one look to the next, a multiple of log_every; 0: never."""
    kind: Literal["knn", "probe"] = "knn"
    """knn (k nearest neighbours) or probe (logistic regression), on the deepest map's mean."""
    train_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images to fit on."""
    heldout_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images to judge on."""
    samples: Count = 2000
    """Images of either source to use at most, drawn class by class (count)."""
    neighbours: Count = 20
    """Neighbours k of knn (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if self.neighbours <= self.samples:
            return []
        allowed = f"1..{self.samples}, the samples"
        return [Problem("neighbours", str(self.neighbours), allowed)]

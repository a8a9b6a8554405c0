"""Settings of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.configs.types import Positive, Weight
from dreamshard.errors import Problem

BETAS = (0.9, 0.95)


@dataclass(kw_only=True)
class OptimizerConfig:
    """Optimiser and learning rate, per step."""

    name: Literal["adamw", "sgd", "lamb", "lars"] = "adamw"
    """Optimiser, from timm."""
    lr: Positive = 1e-3
    """Peak learning rate; of this batch size, unless lr_batch says of which other."""
    lr_batch: Annotated[int, Field(ge=0)] = 0
    """Batch size that lr is meant for, such as 256: the peak is lr x batch_size / lr_batch. 0: no
    scaling."""
    weight_decay: Weight = 0.05
    """Weight decay; biases and normalisation parameters (1-D) have none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer of the backbone to the one before it (0..1]."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = field(default_factory=lambda: list(BETAS))
    """Adam's decay rates; for sgd and lars the first is the momentum."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the rate rises linearly (0..1)."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the peak rate that the cosine ends at (0..1)."""
    clip: Weight = 5.0
    """Largest norm of the whole gradient; 0: no clipping."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if len(self.betas) != 2:
            return [Problem("betas", str(self.betas), "two numbers", "Try [0.9, 0.95].")]
        if self.name in ("sgd", "lars") and self.betas[1] != BETAS[1]:
            allowed = f"[momentum, {BETAS[1]}] with name {self.name}, which has no second one"
            hint = f"Write [{self.betas[0]:g}, {BETAS[1]}]."
            return [Problem("betas", str(self.betas), allowed, hint)]
        return []

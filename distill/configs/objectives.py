"""Settings of the objectives of feature and label distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.types import Count, Positive, Weight
from dreamshard.config.reads import Table
from dreamshard.errors import Problem


@dataclass(kw_only=True)
class FeatureConfig:
    """Predict a teacher's feature maps."""

    reads: ClassVar = (Table("regressor", {"fpn_ppm": "pool_scales"}),)

    mse_weight: Weight = 1.0
    """Weight of the whitened regression."""
    attention_weight: Weight = 10.0
    """Weight of attention transfer; 10 in the paper."""
    whiten_axes: Literal["c", "chw"] = "c"
    """Whiten the teacher over the channels of each position (c), or over the whole map (chw)."""
    attention_power: Positive = 2.0
    """Exponent p of the attention maps; 2 in the paper."""
    attention_form: Literal["norm", "squared", "mean"] = "norm"
    """Distance of attention maps: L2 norm as in the paper, its square, or the mean of squares."""
    regressor: Literal["fpn_ppm", "fpn", "fpn_attention", "pafpn"] = "fpn_ppm"
    """Feature regressor: FPN with pyramid pooling (the paper's), alone, with a self-attention layer
    on the deepest map, or with a bottom-up branch (the variants of the paper's table 8)."""
    width: Annotated[int, Field(ge=1, le=4096)] = 256
    """Channels inside the feature regressor; 256 in the paper."""
    pool_scales: list[Count] = field(default_factory=lambda: [1, 2, 3, 6])
    """Regions per side of the pyramid pooling of fpn_ppm, as far as the map has cells."""
    bridge: Literal["none", "interpolate"] = "none"
    """Levels of resolutions that the student has not: refuse them (none, as in the paper), or
    predict them from the nearest stride and resize the prediction (interpolate)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if self.regressor == "fpn_ppm" and not self.pool_scales:
            hint = "Try --dreamteacher.regressor fpn."
            return [Problem("pool_scales", "[]", "one scale or more for fpn_ppm", hint)]
        return []


@dataclass(kw_only=True)
class LabelConfig:
    """Match soft labels."""

    temperature: Positive = 4.0
    """Temperature tau that softens teacher and student alike; 4 in the paper."""
    temperature_scaled: bool = False
    """Multiply label distillation by tau squared, as Hinton did; the paper does not say so."""
    head_width: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels inside the student's logit head."""

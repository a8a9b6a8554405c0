"""Settings of the objectives of feature and label distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.types import Count, LossWeight, Temperature
from dreamshard.config.reads import Table
from dreamshard.errors import Problem


@dataclass(kw_only=True)
class FeatureConfig:
    """Predict a teacher's feature maps."""

    reads: ClassVar = (
        Table("regressor", {"fpn_ppm": "pool_scales"}),
        Table("whiten", {"layer_norm": "whiten_axes"}),
        Table("regression", {"cos_smooth_l1": "cosine_share"}),
    )

    mse_weight: LossWeight = 1.0
    """Weight of the whitened regression."""
    attention_weight: LossWeight = 10.0
    """Weight of attention transfer; 10 in the paper."""
    whiten: Literal["layer_norm", "channel", "phi_s"] = "layer_norm"
    """How the teacher's maps are standardised: each by itself (layer_norm, the paper's), or by
    statistics of the dataset, each channel by its own (channel) or turned to channels of the same
    variance (phi_s)."""
    regression: Literal["mse", "smooth_l1", "cos_smooth_l1"] = "mse"
    """Distance of a prediction from a standardised map; mse is the paper's. It is told as `mse`."""
    cosine_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of 1 - cosine in cos_smooth_l1 (0..1); 0.9 in Theia, 0.5 in UNIC."""
    whiten_axes: Literal["c", "chw"] = "c"
    """Whiten the teacher over the channels of each position (c), or over the whole map (chw)."""
    attention_power: Annotated[float, Field(ge=1, le=4)] = 2.0
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
    timestep_heads: Literal["own", "shared"] = "own"
    """A head for each map and timestep, or one for all timesteps of a map, which is told the
    timestep (shared; needs levels of several)."""
    shift_cells: Annotated[int, Field(ge=0, le=8)] = 0
    """Show the student each image moved by up to as many cells of the coarsest level each way, and
    compare where both saw it: what the teacher's maps have of their places cannot be copied. 0: it
    sees what the teacher saw; 1 in C-RADIOv4."""
    balance: Literal["levels", "teachers", "losses"] = "levels"
    """How the losses of several teachers (data.join) are weighted: by their levels; each teacher
    alike; or each by the inverse of its loss's moving average (losses), so that all count alike."""
    teacher_dropping: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance of each teacher to be left out for an image (0..1), but for the one of largest loss;
    weights of the others are scaled up. Needs several teachers (data.join); 0.5 in UNIC."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if self.regressor == "fpn_ppm" and not self.pool_scales:
            hint = "Try --dreamteacher.regressor fpn."
            return [Problem("pool_scales", "[]", "one scale or more for fpn_ppm", hint)]
        return []


@dataclass(kw_only=True)
class GramConfig:
    """Match how alike the cells of an image are to one another."""

    temperature: Temperature = 0.07
    """Temperature T of both sides; 0.07 in LightlyTrain."""
    cells: Annotated[int, Field(ge=2, le=4096)] = 256
    """Most cells of a map that are compared (count); larger maps are averaged down to as many. The
    memory of a sample grows with their square."""


@dataclass(kw_only=True)
class LabelConfig:
    """Match soft labels."""

    temperature: Temperature = 4.0
    """Temperature tau that softens teacher and student alike; 4 in the paper."""
    temperature_scaled: bool = False
    """Multiply label distillation by tau squared, as Hinton did; the paper does not say so."""
    head_width: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels inside the student's logit head."""

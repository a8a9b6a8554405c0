"""Settings of Squeeze-and-Span."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.augment import AugmentConfig
from distill.configs.types import LossWeight
from dreamshard.config.reads import Table, When

Width = Annotated[int, Field(ge=1, le=16384)]
Layers = Annotated[int, Field(ge=1, le=8)]


@dataclass(kw_only=True)
class SpanConfig:
    """Let two views of a real image agree, in dimensions that vary and differ."""

    distance: LossWeight = 25.0
    """Weight lambda of the squared distance; 25, and 10 on CIFAR-100."""
    variance: LossWeight = 25.0
    """Weight mu of the variance hinge; 25, and 10 on CIFAR-100."""
    covariance: LossWeight = 1.0
    """Weight nu of the covariance term; 1."""
    rd_reduction: Literal["mean", "sum"] = "mean"
    """The squared distance over dimensions: their mean, as in the official code, to whose scale the
    weights belong, or the paper's sum."""
    width: Width = 2048
    """Width of the embedding (features); with fusion concatenated that of the teacher's."""
    projector_layers: Layers = 5
    """Linear layers of the student's projector (count)."""


@dataclass(kw_only=True)
class SqueezeConfig(SpanConfig):
    """Match a student with a teacher's features squeezed into one embedding."""

    reads: ClassVar = (
        Table("fusion", {"learned": "width squeeze_width squeeze_layers reg_teacher_side"}),
    )

    fusion: Literal["learned", "concatenated"] = "learned"
    """How the teacher's levels become one embedding: by the squeeze module T_phi, which learns
    (learned), or put together as they are (concatenated; the paper's vanilla distillation)."""
    squeeze_width: Width = 2048
    """Width inside the squeeze module (features)."""
    squeeze_layers: Layers = 3
    """Linear layers of the squeeze module after the sum of the levels (count)."""
    reg_teacher_side: bool = True
    """Regularise the teacher's embedding as well, as in the paper (equation 11); the official code
    does not."""
    view: Literal["random", "same"] = "random"
    """What the student sees of a synthetic image: a random view, or the image itself (same; row a
    of the paper's ablation)."""


@dataclass(kw_only=True)
class SqueezeAndSpanConfig(SqueezeConfig):
    """Squeeze-and-Span: a generator's features squeezed, and spanned to real images."""

    reads: ClassVar = (
        When(
            "with view random, or syn_ratio below 1",
            "augment",
            lambda one: one.view == "random" or one.syn_ratio < 1,
            "view",
        ),
        Table("view", {"random": "batch_shared_aug"}),
    )

    syn_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share alpha of the squeeze term; 1 - alpha is the span term's, which needs real images
    (data.real); 1: squeeze alone."""
    batch_shared_aug: bool = False
    """One draw of the augmentation for a whole synthetic batch, as the official code has it; the
    paper draws for each sample."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How random views are made."""

    def summary(self) -> str:
        """Say what a reader of a student's card wants to know."""
        weights = f"weights {self.distance:g}/{self.variance:g}/{self.covariance:g}"
        return f"{self.fusion} teacher features, alpha {self.syn_ratio:g}, {weights}"

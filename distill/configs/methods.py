"""Settings of the methods, one section each, named as in `METHODS`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.augment import AugmentConfig
from distill.configs.objectives import FeatureConfig, LabelConfig
from distill.configs.types import LossWeight, Share
from dreamshard.config.reads import Table, When

Width = Annotated[int, Field(ge=1, le=16384)]

METHODS = {
    "dreamteacher": "distill.methods.dreamteacher:DreamTeacher",
    "simsiam": "distill.methods.two_views:SimSiam",
    "vicreg": "distill.methods.two_views:VICReg",
    "supervised": "distill.methods.supervised:Supervised",
    "compress": "distill.methods.compress:CompRess",
    "squeeze_and_span": "distill.methods.squeeze_and_span:SqueezeAndSpan",
    "mix": "distill.methods.mix:Mix",
    "reg": "distill.methods.compress_baselines:Reg",
    "crd": "distill.methods.crd:CRD",
    "cc": "distill.methods.compress_baselines:ClusterClassification",
}
"""Name, also of the section of its settings -> `module:Class`; a path of your own works too."""


MAPS = (
    "mse_weight attention_weight whiten regression cosine_share whiten_axes attention_power "
    "attention_form regressor width pool_scales bridge timestep_heads shift_cells balance "
    "teacher_dropping"
)
LABELS = "label_weight temperature temperature_scaled head_width"


@dataclass(kw_only=True)
class DreamTeacherConfig(LabelConfig, FeatureConfig):
    """DreamTeacher's feature distillation, label distillation, or both."""

    reads: ClassVar = (
        Table("mode", {"feature": MAPS, "label": LABELS, "mix": f"{MAPS} {LABELS}"}),
    )

    mode: Literal["feature", "label", "mix"] = "feature"
    """What is distilled: feature maps, soft labels (recorded with teacher.interpreter), or both."""
    label_weight: LossWeight = 1.0
    """Weight of label distillation in the mix; 1 in the paper."""

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of levels that the mode needs."""
        both = ("feature", "soft_label")
        return {"feature": both[:1], "label": both[1:], "mix": both}[self.mode]

    def summary(self) -> str:
        """Say what a reader of a student's card wants to know."""
        words = [f"mode {self.mode}"]
        if self.mode != "label":
            words += [
                f"regressor {self.regressor} of width {self.width}",
                f"weights MSE {self.mse_weight:g}, AT {self.attention_weight:g}",
            ]
        if self.mode != "feature":
            words.append(f"labels {self.label_weight:g} at temperature {self.temperature:g}")
        return ", ".join(words)


@dataclass(kw_only=True)
class SimSiamConfig:
    """SimSiam on the dataset's images (a baseline without a teacher)."""

    width: Width = 2048
    """Width of projector and prediction (features)."""
    projector_layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Layers of the projector: 2 on CIFAR, 3 elsewhere (count)."""
    predictor_width: Width = 512
    """Hidden width of the predictor (features)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How the two views are made."""


@dataclass(kw_only=True)
class VICRegConfig:
    """VICReg on the dataset's images (a baseline without a teacher)."""

    reads: ClassVar = (
        When("with layers above 1", "hidden", lambda method: method.layers > 1, "layers"),
    )

    width: Width = 2048
    """Width of the expander's output (features)."""
    hidden: Width = 512
    """Width of the expander's hidden layers (features)."""
    layers: Annotated[int, Field(ge=1, le=8)] = 3
    """Layers of the expander (count)."""
    invariance: LossWeight = 25.0
    """Weight of the distance between the two views."""
    variance: LossWeight = 25.0
    """Weight of the variance hinge, of both views summed."""
    covariance: LossWeight = 1.0
    """Weight of the covariance term, of both views summed."""
    halve_variance: bool = False
    """Halve the variance hinge, as the official code does and the paper does not."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How the two views are made."""


@dataclass(kw_only=True)
class SupervisedConfig:
    """Supervised training on the labels of the dataset's images (a baseline)."""

    label_share: Share = 1.0
    """Share of each class's samples to train on, the same ones for a seed (0..1]."""
    classes: Annotated[int, Field(ge=0)] = 0
    """Classes to tell apart (count); 0: as many as the dataset's labels have."""
    augment: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(
            crop_scale=[0.5, 1.0], jitter=[0.0, 0.0, 0.0, 0.0], grayscale=0.0
        )
    )
    """How the one view is made."""

"""Settings of a mix: any objectives, each with a weight."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from distill.configs.augment import AugmentConfig
from distill.configs.methods import SimSiamConfig, SupervisedConfig, VICRegConfig
from distill.configs.objectives import FeatureConfig, GramConfig, LabelConfig
from distill.configs.similarity import (
    ClustersConfig,
    ContrastConfig,
    RegressionConfig,
    SimilarityConfig,
)
from distill.configs.squeeze import SpanConfig, SqueezeConfig
from distill.configs.types import LossWeight
from dreamshard.config.reads import When


def _when_part(cls: type) -> tuple[When, ...]:
    """Say that an objective's settings are read where it is part of the mix."""
    names = " ".join(item.name for item in fields(cls))
    return (When("with weight above 0", names, lambda part: part.weight > 0, "weight"),)


@dataclass(kw_only=True)
class PartConfig:
    """An objective's part in a mix."""

    weight: LossWeight = 0.0
    """Weight of the objective's loss; 0: it is no part of the mix."""


@dataclass(kw_only=True)
class FeaturePartConfig(FeatureConfig, PartConfig):
    """The teacher's maps."""

    reads: ClassVar = _when_part(FeatureConfig)

    whiten: Literal["layer_norm", "channel", "phi_s"] = "channel"
    """How the teacher's maps are standardised: by statistics of the dataset, each channel by its
    own (channel; ten seeds of CIFAR-10 had better neighbours so) or turned to channels of the same
    variance (phi_s), or each map by itself (layer_norm: DreamTeacher's, and what streams need)."""


@dataclass(kw_only=True)
class GramPartConfig(GramConfig, PartConfig):
    """Likeness of the cells of an image."""

    reads: ClassVar = _when_part(GramConfig)


@dataclass(kw_only=True)
class LabelPartConfig(LabelConfig, PartConfig):
    """Soft labels."""

    reads: ClassVar = _when_part(LabelConfig)


@dataclass(kw_only=True)
class SimilarityPartConfig(SimilarityConfig, PartConfig):
    """Similarities to anchors."""

    reads: ClassVar = _when_part(SimilarityConfig)


@dataclass(kw_only=True)
class RegressionPartConfig(RegressionConfig, PartConfig):
    """The teacher's embedding."""

    reads: ClassVar = _when_part(RegressionConfig)


@dataclass(kw_only=True)
class ClustersPartConfig(ClustersConfig, PartConfig):
    """Clusters of the teacher's embeddings."""

    reads: ClassVar = _when_part(ClustersConfig)


@dataclass(kw_only=True)
class ContrastPartConfig(ContrastConfig, PartConfig):
    """The teacher's embedding, told from others."""

    reads: ClassVar = _when_part(ContrastConfig)


@dataclass(kw_only=True)
class SqueezePartConfig(SqueezeConfig, PartConfig):
    """The teacher's features, squeezed."""

    reads: ClassVar = _when_part(SqueezeConfig)


@dataclass(kw_only=True)
class SpanPartConfig(SpanConfig, PartConfig):
    """Two views of real images."""

    reads: ClassVar = _when_part(SpanConfig)


@dataclass(kw_only=True)
class VICRegPartConfig(PartConfig):
    """VICReg on two views; its augmentation is the mix's."""

    settings: VICRegConfig = field(default_factory=VICRegConfig)
    """Settings of the objective."""
    reads: ClassVar = (When("with weight above 0", "settings", lambda p: p.weight > 0, "weight"),)


@dataclass(kw_only=True)
class SimSiamPartConfig(PartConfig):
    """SimSiam on two views; its augmentation is the mix's."""

    settings: SimSiamConfig = field(default_factory=SimSiamConfig)
    """Settings of the objective."""
    reads: ClassVar = (When("with weight above 0", "settings", lambda p: p.weight > 0, "weight"),)


@dataclass(kw_only=True)
class SupervisedPartConfig(PartConfig):
    """The samples' labels; the augmentation is the mix's."""

    settings: SupervisedConfig = field(default_factory=SupervisedConfig)
    """Settings of the objective."""
    reads: ClassVar = (When("with weight above 0", "settings", lambda p: p.weight > 0, "weight"),)


@dataclass(kw_only=True)
class MixConfig:
    """Several objectives on one student."""

    feature: FeaturePartConfig = field(default_factory=FeaturePartConfig)
    """The teacher's maps, as in DreamTeacher."""
    gram: GramPartConfig = field(default_factory=GramPartConfig)
    """Likeness of the cells of the student's maps to one another, as in the teacher's; no head."""
    label: LabelPartConfig = field(default_factory=LabelPartConfig)
    """Soft labels, as in DreamTeacher."""
    similarity: SimilarityPartConfig = field(default_factory=SimilarityPartConfig)
    """Similarities to anchors, as in CompRess."""
    regression: RegressionPartConfig = field(default_factory=RegressionPartConfig)
    """The teacher's embedding, regressed."""
    clusters: ClustersPartConfig = field(default_factory=ClustersPartConfig)
    """Clusters of the teacher's embeddings, classified."""
    contrast: ContrastPartConfig = field(default_factory=ContrastPartConfig)
    """The teacher's embedding, told from those of other samples, as in CRD."""
    squeeze: SqueezePartConfig = field(default_factory=SqueezePartConfig)
    """The teacher's features, squeezed into one embedding."""
    span: SpanPartConfig = field(default_factory=SpanPartConfig)
    """Two views of real images (data.real), as in Squeeze-and-Span."""
    vicreg: VICRegPartConfig = field(default_factory=VICRegPartConfig)
    """Two views of the samples, as in VICReg."""
    simsiam: SimSiamPartConfig = field(default_factory=SimSiamPartConfig)
    """Two views of the samples, as in SimSiam."""
    supervised: SupervisedPartConfig = field(default_factory=SupervisedPartConfig)
    """The samples' labels."""
    batch_shared_aug: bool = False
    """One draw of the augmentation for a whole batch of samples."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How random views are made, the same ones for every objective."""

    def summary(self) -> str:
        """Say what a reader of a student's card wants to know."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        weights = {n: p.weight for n, p in parts.items() if isinstance(p, PartConfig)}
        return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)

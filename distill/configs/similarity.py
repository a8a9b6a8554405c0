"""Settings of similarity distillation and its baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.augment import AugmentConfig
from distill.configs.types import Count, Temperature
from dreamshard.config.reads import Table


@dataclass(kw_only=True)
class EmbeddingConfig:
    """A teacher's embedding and what the student sees of the image."""

    level: str = ""
    """Level that is the teacher's embedding: a vector, or a map, which is averaged over space;
    empty: the only vector there is, or the only map where there is none."""
    view: Literal["random", "same"] = "random"
    """What the student sees: a random view, while the teacher saw the image (cached embeddings are
    view-free), or the image that the teacher saw, too (same; of a streamed or live teacher)."""


@dataclass(kw_only=True)
class SimilarityConfig(EmbeddingConfig):
    """Match a teacher's similarities to anchors."""

    reads: ClassVar = (Table("variant", {"2q": "momentum"}),)

    variant: Literal["1q", "2q"] = "2q"
    """Queues: one of the teacher's embeddings, which a linear head compares the student with (1q),
    or one each, the student's of a key encoder's embeddings (2q)."""
    queue: Count = 128_000
    """Anchors in a queue (count), at most as many as the dataset has samples; 128,000 in the
    paper, for 1.28 million images."""
    temperature: Temperature = 0.04
    """Temperature T of both sides; 0.04 in the paper."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of itself that the key encoder keeps per step (0..1), a moving average of the student's
    parameters; 0: there is none, and the student's own embeddings are the anchors."""


def crops() -> AugmentConfig:
    """Return CompRess's views: crops and mirrors alone."""
    return AugmentConfig(crop_scale=[0.2, 1.0], jitter=[0.0, 0.0, 0.0, 0.0], grayscale=0.0)


@dataclass(kw_only=True)
class ViewedConfig:
    """How a random view is made."""

    augment: AugmentConfig = field(default_factory=crops)
    """How a random view is made; CompRess crops and mirrors."""


@dataclass(kw_only=True)
class CompressConfig(ViewedConfig, SimilarityConfig):
    """CompRess: self-supervised models compressed by similarities to anchors."""

    reads: ClassVar = (Table("view", {"random": "augment"}),)

    def summary(self) -> str:
        """Say what a reader of a student's card wants to know."""
        words = f"{self.variant}, queue {self.queue}, temperature {self.temperature:g}"
        return f"{words}, momentum {self.momentum:g}" if self.variant == "2q" else words


@dataclass(kw_only=True)
class RegressionConfig(EmbeddingConfig):
    """Regress a teacher's embedding."""

    batch_norm: bool = False
    """Normalise both sides over the batch, without parameters, before they are compared."""


@dataclass(kw_only=True)
class RegConfig(ViewedConfig, RegressionConfig):
    """Reg and, with batch norm, Reg-BN (CompRess's baselines)."""

    reads: ClassVar = (Table("view", {"random": "augment"}),)


@dataclass(kw_only=True)
class ClustersConfig(EmbeddingConfig):
    """Classify the clusters of a teacher's embeddings."""

    clusters: Annotated[int, Field(ge=2)] = 1000
    """Clusters of k-means over the dataset's normalised embeddings (count)."""
    iterations: Count = 20
    """Iterations of k-means (count)."""


@dataclass(kw_only=True)
class ClusterConfig(ViewedConfig, ClustersConfig):
    """CC, classification of clusters (CompRess's baseline, after ClusterFit)."""

    reads: ClassVar = (Table("view", {"random": "augment"}),)


@dataclass(kw_only=True)
class ContrastConfig(EmbeddingConfig):
    """Tell embeddings of the same sample from those of others."""

    negatives: Count = 16_384
    """Negatives per sample (count), fewer than the dataset has samples; 16,384 in CRD."""
    width: Annotated[int, Field(ge=1, le=16384)] = 128
    """Width of both sides' embeddings (features); 128 in CRD."""
    temperature: Temperature = 0.07
    """Temperature; 0.07 in CRD."""
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of itself that a row of the memory keeps (0..1); 0.5 in CRD."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Rows of the memory (count); 0: as many as the dataset has samples, the only right number."""


@dataclass(kw_only=True)
class CRDConfig(ViewedConfig, ContrastConfig):
    """CRD (CompRess's baseline)."""

    reads: ClassVar = (Table("view", {"random": "augment"}),)

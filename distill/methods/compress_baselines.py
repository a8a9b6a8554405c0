"""CompRess's baselines: regression of an embedding, classification of its clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.sets import Needs
from distill.data.statistics import read_values
from distill.losses.similarity import nearest, regression
from distill.methods.compress import Embedding
from distill.methods.objective import Batch, Composite, Part
from distill.modules.kmeans import kmeans
from distill.modules.vectors import as_vector
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.augment import AugmentConfig
    from distill.configs.similarity import (
        ClusterConfig,
        ClustersConfig,
        RegConfig,
        RegressionConfig,
    )
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Regression(Embedding):
    """Regress the teacher's embedding with a linear head.

    Source: CompRess's baselines Reg and Reg-BN; what they normalise is not published.
    """

    config: RegressionConfig

    @classmethod
    def needs(cls, config: RegressionConfig) -> Needs:
        """Say that it needs an embedding, and one view."""
        return super().needs(config)

    def heads(self, width: int, teacher_width: int, *, student: Student) -> None:
        """Build the linear head and, where asked for, both sides' batch norm."""
        self.head = nn.Linear(width, teacher_width)
        norms = [nn.BatchNorm1d(teacher_width, affine=False) for _ in range(2)]
        self.norms = nn.ModuleList(norms if self.config.batch_norm else ())

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss"; arguments as `Objective` has them."""
        both = [self.head(pooled[self.view]), as_vector(batch.targets[self.level.name])]
        for place, norm in enumerate(self.norms):
            both[place] = norm(both[place])
        return {"loss": regression(*both)}


class Reg(Composite):
    """Regress a teacher's embedding, with or without batch norm.

    Source: CompRess, table 1 (Reg, Reg-BN).
    """

    section = "reg"

    @classmethod
    def parts(cls, config: RegConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"regression": Part(Regression, config)}

    @classmethod
    def augment(cls, config: RegConfig) -> AugmentConfig:
        """Return how the view is made."""
        return config.augment


class Clusters(Embedding):
    """Classify which cluster of the teacher's embeddings an image belongs to.

    Source: ClusterFit (Yan et al. 2020), as CompRess compares with.
    """

    config: ClustersConfig
    centroids: Tensor

    @classmethod
    def settled(cls, config: ClustersConfig, training_set: TrainingSet) -> ClustersConfig:
        """Find the level; refuse more clusters than there are samples, and streams."""
        super().settled(config, training_set)
        count = training_set.source.num_valid
        if count and config.clusters > count:
            allowed = f"at most {count}, the samples of {training_set.source.url}"
            raise ConfigError(Problem("clusters", str(config.clusters), allowed))
        return config

    def heads(self, width: int, teacher_width: int, *, student: Student) -> None:
        """Build the classifier; the clusters are found before the first step."""
        self.register_buffer("centroids", torch.zeros(self.config.clusters, teacher_width))
        self.classifier = nn.Linear(width, self.config.clusters)

    def prepare(self, training_set: TrainingSet) -> None:
        """Find the clusters: k-means over every sample's normalised embedding."""
        points = as_vector(read_values(training_set, self.level.name))
        centroids = kmeans(
            F.normalize(points, dim=1),
            count=self.config.clusters,
            iterations=self.config.iterations,
            seed=training_set.seed,
        )
        self.centroids.copy_(centroids)

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss" (cross-entropy) and "accuracy" (0..1); arguments as `Objective` has."""
        points = F.normalize(as_vector(batch.targets[self.level.name]), dim=1)
        cluster = nearest(points, self.centroids)
        logits = self.classifier(pooled[self.view]).float()
        accuracy = (logits.argmax(dim=1) == cluster).float().mean()
        return {"loss": F.cross_entropy(logits, cluster), "accuracy": accuracy}


class ClusterClassification(Composite):
    """Classify the clusters of a teacher's embeddings.

    Source: CompRess, table 1 (CC).
    """

    section = "cc"

    @classmethod
    def parts(cls, config: ClusterConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"clusters": Part(Clusters, config)}

    @classmethod
    def augment(cls, config: ClusterConfig) -> AugmentConfig:
        """Return how the view is made."""
        return config.augment

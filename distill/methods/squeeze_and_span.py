"""Squeeze-and-Span: a generator's features squeezed into one embedding, spanned to real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.sets import Needs
from distill.losses.squeeze import regularised_distance
from distill.methods.objective import (
    FIRST,
    IMAGE,
    REAL_FIRST,
    REAL_SECOND,
    Batch,
    Composite,
    Objective,
    Part,
)
from distill.modules.projector import SqueezeModule, projector
from distill.modules.vectors import as_vector, vector_levels
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.augment import AugmentConfig
    from distill.configs.squeeze import SpanConfig, SqueezeAndSpanConfig, SqueezeConfig
    from distill.students.student import Student


class Span(Objective):
    """Let a student's embeddings of two views of a real image agree.

    It projects as the squeeze objective of the same method does, where there is one.

    Source: Squeeze-and-Span, section 4.2, equation 12.
    """

    config: SpanConfig
    over_batch = "variance and covariance"

    @classmethod
    def needs(cls, config: SpanConfig) -> Needs:
        """Say that it needs two views of real images, and nothing of a teacher."""
        return Needs(kinds=(), views=(REAL_FIRST, REAL_SECOND), deepest=True, real=True)

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the projector."""
        config = self.config
        self.projector = projector(
            student.channels[-1],
            self.embedding_width(levels),
            layers=config.projector_layers,
        )

    def embedding_width(self, levels: Sequence[Level]) -> int:
        """Return the width of the embedding."""
        return self.config.width

    def meet(self, others: Mapping[str, Objective]) -> None:
        """Take the projector of the squeeze objective: both embed into one space."""
        squeeze = others.get("squeeze")
        if isinstance(squeeze, Squeeze) and squeeze is not self:
            del self.projector
            self.borrowed = [squeeze.projector]  # in a list: it stays that objective's

    def project(self, pooled: Tensor) -> Tensor:
        """Embed pooled features (B, C), of the batch over all ranks: (ranks x B, D)."""
        head = self.borrowed[0] if hasattr(self, "borrowed") else self.projector
        return gathered_rows(head(pooled))

    def weights(self) -> dict[str, float]:
        """Return lambda, mu and nu."""
        config = self.config
        return {
            "distance": config.distance,
            "variance": config.variance,
            "covariance": config.covariance,
        }

    def compare(self, first: Tensor, second: Tensor, *, both_sides: bool) -> dict[str, Tensor]:
        """Return the loss of two embeddings and its terms; see `regularised_distance`."""
        config = self.config
        return regularised_distance(
            first,
            second,
            distance_weight=config.distance,
            variance_weight=config.variance,
            covariance_weight=config.covariance,
            both_sides=both_sides,
            reduction=config.rd_reduction,
        )

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss", "distance", "variance", "covariance" and "std", of all ranks' batch.

        Arguments as `Objective` has them; "std" is the embedding's mean standard deviation.
        """
        first, second = (self.project(pooled[view]) for view in (REAL_FIRST, REAL_SECOND))
        std = first.detach().float().std(dim=0).mean()
        return {**self.compare(first, second, both_sides=True), "std": std}


class Squeeze(Span):
    """Match a student's embedding with a teacher's features, squeezed into one.

    Source: Squeeze-and-Span, section 4.1, equation 11.
    """

    config: SqueezeConfig

    @classmethod
    def needs(cls, config: SqueezeConfig) -> Needs:
        """Say that it needs a teacher's vectors, and one view."""
        view = FIRST if config.view == "random" else IMAGE
        return Needs(kinds=("embedding",), views=(view,), deepest=True)

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the projector and the squeeze module."""
        super().build(student, levels, image_size=image_size, seed=seed)
        config = self.config
        self.view = FIRST if config.view == "random" else IMAGE
        self.levels = [level.name for level in vector_levels(levels)]
        self.squeeze = None
        if config.fusion == "learned":
            self.squeeze = SqueezeModule(
                [level.shape[0] for level in vector_levels(levels)],
                hidden=config.squeeze_width,
                width=config.width,
                layers=config.squeeze_layers,
            )

    def embedding_width(self, levels: Sequence[Level]) -> int:
        """Return the width of the embedding: the settings', or that of the vectors together."""
        if self.config.fusion == "learned":
            return self.config.width
        return sum(level.shape[0] for level in vector_levels(levels))

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss", "distance", "variance", "covariance", "std" and "teacher_std".

        Arguments as `Objective` has them; all are of all ranks' batch.
        """
        vectors = [as_vector(batch.targets[name]) for name in self.levels]
        student = self.project(pooled[self.view])
        if self.squeeze is None:
            teacher, both_sides = torch.cat(vectors, dim=1), False
        else:
            teacher, both_sides = self.squeeze(vectors), self.config.reg_teacher_side
        teacher = gathered_rows(teacher)
        terms = self.compare(student, teacher, both_sides=both_sides)
        spreads = (each.detach().float().std(dim=0).mean() for each in (student, teacher))
        return {**terms, **dict(zip(("std", "teacher_std"), spreads, strict=True))}


class SqueezeAndSpan(Composite):
    """Squeeze a generator's features, and span the student to real images.

    loss = alpha * squeeze + (1 - alpha) * span; synthetic and real images pass through the student
    apart, each with batch statistics of its own.

    Source: Squeeze-and-Span (Yang et al. 2022).
    """

    section = "squeeze_and_span"
    qualified = True

    @classmethod
    def parts(cls, config: SqueezeAndSpanConfig) -> dict[str, Part]:
        """Return squeeze and, with a share below 1, span."""
        alpha = config.syn_ratio
        parts = {"squeeze": Part(Squeeze, config, weight=alpha)}
        return parts if alpha == 1 else parts | {"span": Part(Span, config, weight=1 - alpha)}

    @classmethod
    def augment(cls, config: SqueezeAndSpanConfig) -> AugmentConfig:
        """Return how random views are made."""
        return config.augment

    @classmethod
    def shares_draws(cls, config: SqueezeAndSpanConfig) -> bool:
        """Tell whether one draw serves a whole synthetic batch."""
        return config.batch_shared_aug

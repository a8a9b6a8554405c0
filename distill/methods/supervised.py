"""Supervised training on the dataset's labels, all or few of them: a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.sets import Needs
from distill.methods.objective import FIRST, Batch, Composite, Objective, Part
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig, SupervisedConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Classes(Objective):
    """Learn the samples' labels with a linear classifier on the deepest map's mean."""

    config: SupervisedConfig

    @classmethod
    def needs(cls, config: SupervisedConfig) -> Needs:
        """Say that images and their labels are needed."""
        return Needs(
            kinds=(),
            labels=True,
            share=config.label_share,
            classes=config.classes,
            views=(FIRST,),
            deepest=True,
        )

    @classmethod
    def settled(cls, config: SupervisedConfig, training_set: TrainingSet) -> SupervisedConfig:
        """Count the classes where the settings do not."""
        return config if config.classes else replace(config, classes=training_set.num_classes)

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the classifier."""
        self.classifier = nn.Linear(student.channels[-1], self.config.classes)

    def weights(self) -> dict[str, float]:
        """Return that of the only term."""
        return {"loss": 1.0}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss" (cross-entropy) and "accuracy" on the batch (0..1).

        Arguments as `Objective` has them.
        """
        logits = self.classifier(pooled[FIRST]).float()
        labels = batch.targets["label"]
        loss = F.cross_entropy(logits, labels)  # in float32 inside autocast as well
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}


class Supervised(Composite):
    """Train a student and a linear classifier on the dataset's labels."""

    section = "supervised"

    @classmethod
    def parts(cls, config: SupervisedConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"supervised": Part(Classes, config)}

    @classmethod
    def augment(cls, config: SupervisedConfig) -> AugmentConfig:
        """Return how the one view is made."""
        return config.augment

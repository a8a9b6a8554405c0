"""Supervised training on the dataset's labels, all or few of them: a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.views import random_view
from distill.methods.base import Method
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import SupervisedConfig
    from distill.students.student import Student


class Supervised(Method):
    """Train a student and a linear classifier on its deepest map's mean.

    Args:
        config: the method's settings, with the number of classes.
        student: the backbone that is kept.
        levels, image_size: unused: there is no teacher.
        seed: of the classifier's initialisation.
    """

    needs = frozenset({"labels"})

    def __init__(
        self,
        config: SupervisedConfig,
        *,
        student: Student,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.student = config, student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(student.channels[-1], config.classes)

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" (cross-entropy) and "accuracy" on the batch (0..1).

        Args:
            images: (B, 3, H, W), normalised.
            targets: "label", int64 (B,).
        """
        view = random_view(
            images, self.config.augment, mean=self.student.mean, std=self.student.std
        )
        logits = self.classifier(self.student.pooled(view)).float()
        labels = targets["label"]
        loss = F.cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

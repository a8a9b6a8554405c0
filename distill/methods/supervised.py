"""Supervised training on the dataset's labels, all or few of them: a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.sets import Needs
from distill.methods.base import Method
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import SupervisedConfig


class Supervised(Method):
    """Train a student and a linear classifier on its deepest map's mean."""

    config: SupervisedConfig

    @classmethod
    def needs(cls, config: SupervisedConfig) -> Needs:
        """Say that images and their labels are needed."""
        return Needs(kinds=(), labels=True, share=config.label_share, classes=config.classes)

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build the classifier."""
        self.classifier = nn.Linear(self.student.channels[-1], self.config.classes)

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" (cross-entropy) and "accuracy" on the batch (0..1).

        Args:
            images: (B, 3, H, W), normalised.
            targets: "label", int64 (B,).
        """
        logits = self.classifier(self.pooled_view(images, self.config.augment)).float()
        labels = targets["label"]
        loss = F.cross_entropy(logits, labels)  # in float32 inside autocast as well
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

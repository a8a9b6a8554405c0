"""What every distillation method is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from distill.students import Student


class Method(nn.Module):
    """Hold a student and whatever else is trained with it; turn a batch into loss terms."""

    student: Student

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss terms of one batch.

        Args:
            images: float32 (B, 3, H, W), normalised.
            targets: level name to the recorded features, float32 (B, C, h, w).

        Returns:
            float32 scalars by name; "loss" is minimised, all are reported.
        """
        raise NotImplementedError

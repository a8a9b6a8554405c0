"""What every distillation method is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from distill.configs.train import TrainConfig
    from distill.students.student import Student


class Method(nn.Module):
    """Hold a student and whatever else is trained with it; turn a batch into loss terms."""

    student: Student
    needs: ClassVar[frozenset[str]] = frozenset({"levels"})
    """What a batch's targets must hold: the teacher's levels, the samples' labels, or neither."""
    views: ClassVar[int] = 1
    """Forward passes of the student per sample and step, for comparisons at equal compute."""
    fixed_rate: tuple[str, ...] = ()
    """Beginnings of the names of parameters whose learning rate stays at its peak."""

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss terms of one batch.

        Args:
            images: float32 (B, 3, H, W), normalised.
            targets: level name to the recorded features, float32 (B, C, h, w); "label" to int64
                (B,) for methods that need labels.

        Returns:
            float32 scalars by name; "loss" is minimised, all are reported.
        """
        raise NotImplementedError

    def keep(self, folder: Path) -> None:
        """Write into the run's folder what is worth keeping beside the student."""

    def layers(self, config: TrainConfig, *, image_size: tuple[int, int]) -> dict[str, int]:
        """Number the layers of the student's backbone, 0 the stem, if there is layer decay.

        Args:
            config: of the run.
            image_size: (H, W) in pixels that the student was built for.

        Returns:
            Depth by parameter name of this module; empty without layer decay.

        Raises:
            ConfigError: a backbone whose layers timm does not know.
        """
        if config.optimizer.layer_decay == 1.0:
            return {}
        from distill.students.timm_names import layer_numbers

        numbers = layer_numbers(self.student.backbone, config.student, image_size=image_size)
        return {f"student.backbone.{name}": number for name, number in numbers.items()}

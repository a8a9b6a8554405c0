"""What every distillation method is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.data.sets import Needs
from storage.schema import Level

if TYPE_CHECKING:
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Method(nn.Module):
    """Hold a student and whatever else is trained with it; turn a batch into loss terms.

    Args:
        config: the method's own section of the settings.
        student: the backbone that is kept.
        levels: of the teacher, as the student sees them (cropped), finest first.
        image_size: (H, W) in pixels.
        seed: of the initial weights of all but the student.
    """

    views: int = 1
    """Forward passes of the student per sample and step, for comparisons at equal compute."""
    over_batch: str = ""
    """Terms of the loss that are statistics of a batch; gather it over ranks (`gathered_rows`)."""
    several: bool = False
    """It has several objectives, which compete for the student."""
    measuring: bool = False
    """Whether this forward pass tells each term's gradient and weight, where a method can."""
    fixed_rate: tuple[str, ...] = ()
    """Beginnings of the names of parameters whose learning rate stays at its peak."""

    def __init__(
        self,
        config: Any,
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
            self.build(levels, image_size=image_size, seed=seed)

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Say what a batch's targets must hold: maps of a teacher, unless a method says otherwise.

        Args:
            config: the method's own section of the settings.
        """
        return Needs()

    @classmethod
    def settled(cls, config: Any, training_set: TrainingSet) -> Any:
        """Return the settings with what follows from the training set; refuse what does not fit.

        Args:
            config: the method's own section of the settings.
            training_set: what is trained on.

        Raises:
            ConfigError: settings that this training set does not allow.
        """
        return config

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build what is trained beside the student; PyTorch's generator is seeded already.

        Args:
            levels, image_size, seed: as the class has them.
        """

    def prepare(self, training_set: TrainingSet) -> None:
        """Look at the training set before the first step, for statistics of it."""

    def before_step(self, *, measured: bool) -> None:
        """Begin a step; measured: gradients of the terms are told of it."""
        self.measuring = measured

    def after_step(self) -> None:
        """Do what follows an optimiser's step, such as a moving average."""

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

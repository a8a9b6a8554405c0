"""Everything of a training run that changes from step to step, and so goes into its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.optim import Optimizer

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3
    from torch.amp.grad_scaler import GradScaler

    from distill.configs.train import TrainConfig
    from distill.methods.base import Method
    from distill.students.student import Student


@dataclass
class Learner:
    """Hold what learns.

    Args:
        method: student and whatever is trained with it.
        optimizer: of the method's parameters.
        average: moving average of the student's weights, if there is one.
        scaler: of the loss, where training is in float16.
    """

    method: Method
    optimizer: Optimizer
    average: ModelEmaV3 | None = None
    scaler: GradScaler | None = None

    @property
    def kept(self) -> Student:
        """The student to keep: its moving average, if there is one."""
        if self.average is None:
            return self.method.student
        student: Student = self.average.module  # pyright: ignore[reportAssignmentType]
        return student

    def follow(self, step: int) -> None:
        """Move the average towards the student's weights after a step (1, 2, ...)."""
        if self.average is not None:
            self.average.update(self.method.student, step=step)


def build_learner(
    method: Method,
    *,
    config: TrainConfig,
    image_size: tuple[int, int],
    scaler: GradScaler | None,
) -> Learner:
    """Build the optimiser and the moving average that go with a method.

    Args:
        method: placed on its device already.
        image_size: (H, W) in pixels.
        scaler: of the loss, where training is in float16.
    """
    from distill.training.optim import build_optimizer

    layers = None
    if config.optimizer.layer_decay != 1.0:
        layers = method.layers(config.student, image_size=image_size)
    return Learner(
        method=method,
        optimizer=build_optimizer(method, config.optimizer, layers=layers, fused=scaler is None),
        average=build_average(method.student, decay=config.ema),
        scaler=scaler,
    )


def build_average(student: Student, *, decay: float) -> ModelEmaV3 | None:
    """Build the moving average of a student's weights and buffers.

    At step s the decay is min(decay, 1 - (1 + s)^(-2/3)), so that the initial weights are soon
    forgotten.

    Args:
        student: placed on its device already; the average is kept there.
        decay: 0..1; 0 for none.
    """
    from timm.utils.model_ema import ModelEmaV3

    if decay == 0.0:
        return None
    return ModelEmaV3(student, decay=decay, use_warmup=True)

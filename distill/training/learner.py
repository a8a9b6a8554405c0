"""What learns in a training run: a method on its device, its optimiser, its student's average."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.training.launch import place
from distill.training.optim import build_optimizer, layer_depths, schedule_of
from pipeline.learning.average import build_average
from pipeline.learning.loop import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.configs.optimizer import OptimizerConfig
    from distill.configs.student import StudentConfig
    from distill.methods.base import Method


def build_learner(
    method: Method,
    accelerator: Accelerator,
    *,
    optimizer: OptimizerConfig,
    student: StudentConfig,
    image_size: tuple[int, int],
    steps: int,
    batch_size: int,
    ema: float,
    sync_batchnorm: str,
) -> Learner:
    """Bring a method to its device, and put optimiser and average of its student beside it.

    Args:
        method: on the CPU; its student is what is kept in the end.
        accelerator: which device, how many ranks, whether the loss is scaled.
        optimizer: optimiser, learning rate, clipping.
        student: how the student was built, and how its backbone is compiled.
        image_size: (H, W) in pixels that it was built for.
        steps: of the whole run.
        batch_size: samples per step, over all ranks.
        ema: decay of the average, 0..1; 0 for none.
        sync_batchnorm: off, or with several GPUs synchronised.
    """
    place(
        method,
        accelerator,
        sync_batchnorm=sync_batchnorm,
        compile_mode=student.compile,
    )
    depths = layer_depths(
        method,
        method.student,
        layer_decay=optimizer.layer_decay,
        config=student,
        image_size=image_size,
    )
    return Learner(
        module=method,
        optimizer=build_optimizer(
            method, optimizer, layers=depths, fused=accelerator.scaler is None
        ),
        schedule=schedule_of(optimizer, steps=steps, batch_size=batch_size),
        clip=optimizer.clip,
        network=method.student,
        average=build_average(method.student, decay=ema),
        scaler=accelerator.scaler,
    )

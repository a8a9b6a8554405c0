"""Training as the tasks share it: a loss per step, averaged weights; stopped, it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from distill.training.optim import build_optimizer, layer_depths, schedule_of
from dreamshard.errors import DreamshardError
from pipeline.learning.average import build_average
from pipeline.learning.figures import Figures
from pipeline.learning.loop import Learner, take_steps
from pipeline.learning.resume import load_stopped, save_stopped
from pipeline.learning.stopping import StopAfterStep

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.optimizer import OptimizerConfig
    from distill.students.student import Student

CHECK_EVERY = 10
"""Steps between looks at the losses, which wait for the device (count)."""


def fit(
    module: nn.Module,
    *,
    config: OptimizerConfig,
    steps: int,
    batch_size: int,
    next_loss: Callable[[], Tensor],
    student: Student,
    bench: Bench,
    ema: float = 0.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    report: Callable[[], None] = lambda: None,
    skip: Callable[[], object] = lambda: None,
) -> nn.Module:
    """Train a module in place and return what is to be judged.

    Stopped by Ctrl-C or SIGTERM it saves what it has, and the same evaluation goes on from there.

    Args:
        module: in training mode, on its device.
        config: optimiser and learning rate.
        steps: optimiser steps.
        batch_size: images per step, which the learning rate may be scaled by.
        next_loss: computes the loss of the next batch, from float32 logits.
        student: inside the module, for layer decay.
        bench: knows how the student was built.
        ema: decay of averaged weights, warmed up; 0: none.
        precision: bf16 runs next_loss under autocast; the weights stay float32.
        report: called after each step.
        skip: passes over the next batch, for each step that was taken before.

    Returns:
        The module, or its average, in evaluation mode.

    Raises:
        ConfigError: layer decay for a backbone whose layers timm does not know; what was saved is
            of another evaluation.
        Interrupted: asked to stop.
        DreamshardError: a loss that is not finite.
    """
    depths = layer_depths(
        module,
        student,
        layer_decay=config.layer_decay,
        config=bench.student_config,
        image_size=bench.image_size,
    )
    learner = Learner(
        module=module,
        optimizer=build_optimizer(module, config, layers=depths),
        schedule=schedule_of(config, steps=steps, batch_size=batch_size),
        clip=config.clip,
        average=build_average(module, decay=ema),
    )
    kept = bench.read_outs.next()
    done = load_stopped(kept, learner, key=bench.read_outs.key) if kept is not None else 0
    for _ in range(done):
        skip()
        report()

    def save(step: int) -> None:
        if kept is not None:
            save_stopped(kept, learner, step=step, key=bench.read_outs.key)

    return take_all(learner, next_loss, precision=precision, report=report, done=done, save=save)


def check_layers(config: OptimizerConfig, student: Student, *, bench: Bench) -> None:
    """Refuse layer decay for a backbone whose layers timm does not know.

    Raises: ConfigError.
    """
    layer_depths(
        student,
        student,
        layer_decay=config.layer_decay,
        config=bench.student_config,
        image_size=bench.image_size,
    )


def take_all(
    learner: Learner,
    next_loss: Callable[[], Tensor],
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    report: Callable[[], None] = lambda: None,
    done: int = 0,
    save: Callable[[int], None] = lambda step: None,
) -> nn.Module:
    """Take a learner's steps that are left; result and errors as those of `fit`.

    Args:
        learner: in the state after `done` steps.
        next_loss, precision, report: as in `fit`.
        done: steps taken before.
        save: called with the step after the last one, and before a stop that was asked for.
    """
    device, half = next(learner.module.parameters()).device.type, precision == "bf16"

    def forward(*_: object) -> Mapping[str, Tensor]:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            return {"loss": next_loss()}

    figures = Figures(_diverged)
    with StopAfterStep("evaluate") as stopping:
        for taken in take_steps(learner, forward, done=done):
            figures.note(taken.step, taken.terms, taken.rate)
            if taken.due(CHECK_EVERY):
                figures.means()
            report()
            stop = stopping.now(taken, every=1)
            if stop or taken.last:
                save(taken.step)
            if stop:
                stopping.leave(taken.step, learner.schedule.steps)
    return learner.kept.eval()


def _diverged(step: int, figures: Mapping[str, float], rate: float) -> DreamshardError:
    return DreamshardError(
        f"step {step}: the loss is {figures['loss']} at a learning rate of {rate:.3g}. Lower "
        "the task's optimizer.lr, or warm up longer."
    )

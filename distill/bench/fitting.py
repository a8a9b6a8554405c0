"""The training loop that the tasks share: a schedule, a loss per step, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from distill.training.optim import build_optimizer, learning_rate, set_learning_rate
from dreamshard.errors import DreamshardError

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.train import OptimizerConfig
    from distill.students.student import Student


def fit(
    module: nn.Module,
    *,
    config: OptimizerConfig,
    steps: int,
    batch_size: int,
    next_loss: Callable[[], Tensor],
    depths: Mapping[str, int] | None = None,
    ema: float = 0.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    report: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train a module in place and return what is to be judged.

    Args:
        module: in training mode, on its device.
        config: optimiser and learning rate.
        steps: optimiser steps.
        batch_size: images per step, which the learning rate may be scaled by.
        next_loss: computes the loss of the next batch, from float32 logits.
        depths: of the module's parameters, for layer decay; see `layer_depths`.
        ema: decay of averaged weights, warmed up (timm's ModelEmaV3); 0: none.
        precision: bf16 runs next_loss under autocast; the weights stay float32.
        report: called after each step.

    Returns:
        The module, or its average, in evaluation mode.

    Raises:
        DreamshardError: a loss that is not finite.
    """
    optimizer = build_optimizer(module, config, layers=depths)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    device, half = next(module.parameters()).device.type, precision == "bf16"
    average = None
    if ema:
        from timm.utils.model_ema import ModelEmaV3

        average = ModelEmaV3(module, decay=ema, use_warmup=True)
    for step in range(1, steps + 1):
        rate = learning_rate(step, steps=steps, config=config, batch_size=batch_size)
        set_learning_rate(optimizer, rate)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = next_loss()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DreamshardError(
                f"step {step}: the loss is {value} at a learning rate of {rate:.3g}. Lower "
                "the task's optimizer.lr, or warm up longer."
            )
        optimizer.zero_grad()
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        if average is not None:
            average.update(module, step=step)
        report()
    return (module if average is None else average.module).eval()


def layer_depths(
    module: nn.Module, student: Student, *, config: OptimizerConfig, bench: Bench
) -> dict[str, int]:
    """Number the layers of a student inside a module, 0 the stem, if there is layer decay.

    Args:
        module: that holds the student somewhere; whatever else it holds has the full rate.
        student: whose backbone's layers are numbered.
        config: whether there is layer decay.
        bench: knows how the student was built.

    Returns:
        Depth by parameter name of the module; empty without layer decay.

    Raises:
        ConfigError: a backbone whose layers timm does not know.
    """
    if config.layer_decay == 1.0:
        return {}
    from distill.students.timm_names import layer_numbers

    numbers = layer_numbers(student.backbone, bench.student_config, image_size=bench.image_size)
    prefix = next(name for name, inner in module.named_modules() if inner is student.backbone)
    return {f"{prefix}.{name}": number for name, number in numbers.items()}

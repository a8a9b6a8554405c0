"""The training loop that the tasks share: a schedule, a loss per step, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.optim import build_optimizer, learning_rate, set_learning_rate
from dreamshard.errors import DreamshardError

if TYPE_CHECKING:
    from distill.config import OptimizerConfig


def fit(
    module: nn.Module,
    *,
    config: OptimizerConfig,
    steps: int,
    next_loss: Callable[[], Tensor],
    ema: float = 0.0,
    report: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train a module in place and return what is to be judged.

    Args:
        module: in training mode, on its device.
        config: optimiser and learning rate.
        steps: optimiser steps.
        next_loss: computes the loss of the next batch.
        ema: decay of averaged weights, warmed up (timm's ModelEmaV3); 0: none.
        report: called after each step.

    Returns:
        The module, or its average, in evaluation mode.

    Raises:
        DreamshardError: a loss that is not finite.
    """
    optimizer = build_optimizer(module, config)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    average = None
    if ema:
        from timm.utils.model_ema import ModelEmaV3

        average = ModelEmaV3(module, decay=ema, use_warmup=True)
    for step in range(1, steps + 1):
        rate = learning_rate(step, steps=steps, config=config)
        set_learning_rate(optimizer, rate)
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

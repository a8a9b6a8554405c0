"""Optimiser and learning rate of a training run."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from distill.config import OptimizerConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build timm's optimiser with weight decay on matrices and kernels only.

    Args:
        module: whose trainable parameters are optimised.
        config: which optimiser; the learning rate is set before every step by the caller.
    """
    from timm.optim._optim_factory import create_optimizer_v2

    first, second = config.betas
    make = partial(create_optimizer_v2, module, lr=config.lr, weight_decay=config.weight_decay)
    if config.name == "sgd":  # timm's "sgd" is Nesterov's; the papers use the classical one
        return make(opt="momentum", momentum=first)
    if config.name == "lamb":
        return make(opt="lamb", betas=(first, second))
    return make(opt="adamw", betas=(first, second), fused=True)


def learning_rate(step: int, *, steps: int, config: OptimizerConfig) -> float:
    """Return the rate of one step: linear warm-up to the peak, then a cosine down to the floor.

    Args:
        step: 1..steps.
        steps: of the whole run.
        config: peak, warm-up share and floor share.
    """
    warmup = round(config.warmup * steps)
    if step <= warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.floor + (1 - config.floor) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of every parameter group, scaled where timm asks for it (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)

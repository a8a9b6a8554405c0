"""Optimiser and learning rate of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from distill.configs.train import OptimizerConfig


def build_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    *,
    layers: Mapping[str, int] | None = None,
    fused: bool = True,
) -> Optimizer:
    """Build timm's optimiser with weight decay on matrices and kernels only.

    Args:
        module: whose trainable parameters are optimised.
        config: which optimiser; the learning rate is set before every step by the caller.
        layers: depth by parameter name, 0 the stem, for layer decay; parameters it does not name
            (the regressor's) have the full rate.
        fused: one kernel per group of tensors. Not with a scaled loss: a fused step leaves out what
            overflowed by itself, and Accelerate then counts a step that never was.
    """
    from timm.optim._optim_factory import create_optimizer_v2

    first, second = config.betas
    groups = parameter_groups(module, config, layers=layers)
    make = partial(create_optimizer_v2, groups, lr=config.lr, weight_decay=config.weight_decay)
    if config.name == "sgd":  # timm's "sgd" is Nesterov's; the papers use the classical one
        return make(opt="momentum", momentum=first)
    if config.name == "lars":
        return make(opt="lars", momentum=first)
    if config.name == "lamb":  # the trainer clips by itself; timm's would clip at 1 besides
        return make(opt="lamb", betas=(first, second), max_grad_norm=None)
    return make(opt="adamw", betas=(first, second), fused=fused)


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, *, layers: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Group a module's trainable parameters by weight decay and learning rate.

    Biases, normalisation parameters and whatever a network exempts itself (position embeddings)
    have no weight decay. A layer's rate is `layer_decay` times that of the layer after it.

    Args:
        module: whose parameters.
        config: weight decay and layer decay.
        layers: depth by parameter name, as in `build_optimizer`.

    Returns:
        Groups of "params", "weight_decay", "lr_scale" and "fixed_rate", fastest and decaying first.
    """
    layers = layers or {}
    top = max(layers.values(), default=0)
    exempt = _exempt(module)
    fixed = tuple(getattr(module, "fixed_rate", ()))
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = config.layer_decay ** (top - layers.get(name, top))
            decays = parameter.ndim > 1 and name not in exempt
            key = (scale, config.weight_decay if decays else 0.0, name.startswith(fixed))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[scale, decay, fixed],
            "weight_decay": decay,
            "lr_scale": scale,
            "fixed_rate": fixed,
        }
        for scale, decay, fixed in sorted(groups, reverse=True)
    ]


def _exempt(module: nn.Module) -> set[str]:
    """Name the parameters that timm networks inside say must not decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        if callable(getattr(inner, "no_weight_decay", None))
        for name in inner.no_weight_decay()  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    }


def peak_rate(config: OptimizerConfig, *, batch_size: int) -> float:
    """Return the highest learning rate of a run: `lr`, scaled with the batch size where asked."""
    return config.lr * (batch_size / config.lr_batch if config.lr_batch else 1.0)


def learning_rate(step: int, *, steps: int, config: OptimizerConfig, batch_size: int = 0) -> float:
    """Return the rate of one step: linear warm-up to the peak, then a cosine down to the floor.

    Args:
        step: 1..steps.
        steps: of the whole run.
        config: peak, the batch size it is meant for, warm-up share and floor share.
        batch_size: of the run, samples per step.
    """
    peak = peak_rate(config, batch_size=batch_size)
    warmup = round(config.warmup * steps)
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.floor + (1 - config.floor) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float, *, peak: float | None = None) -> None:
    """Set the rate of every parameter group, scaled by its layer's decay.

    Args:
        optimizer: of groups as `parameter_groups` makes them.
        rate: of this step.
        peak: of the run, for the groups whose rate is fixed; None: they follow, too.
    """
    for group in optimizer.param_groups:
        fixed = group.get("fixed_rate") and peak is not None
        group["lr"] = (peak if fixed else rate) * group.get("lr_scale", 1.0)

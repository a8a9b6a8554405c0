"""Optimiser, its groups of parameters, and the learning rate of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from distill.students.timm_names import exempt_in
from pipeline.learning.schedule import WarmupCosine

FINAL_NORM = re.compile(r"(model\.)?(norm|fc_norm)\.(weight|bias)$")
"""Names of a transformer's last norm, which timm groups with the last block."""

if TYPE_CHECKING:
    from distill.configs.optimizer import OptimizerConfig
    from distill.configs.student import StudentConfig
    from distill.students.student import Student


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

    Biases, normalisation parameters and whatever a network exempts itself (position embeddings,
    tables of relative positions) have no weight decay. A layer's rate is `layer_decay` times that
    of the layer after it; what comes after the backbone has the full rate, so that the backbone's
    last layer has `layer_decay` of it, as published (BEiT, MAE, SparK).

    Args:
        module: whose parameters.
        config: weight decay and layer decay.
        layers: depth by parameter name, as in `build_optimizer`.

    Returns:
        Groups of "params", "weight_decay", "lr_scale" and "fixed_rate", fastest and decaying first.
    """
    layers = layers or {}
    top = max(layers.values(), default=-1) + 1
    exempt = exempt_in(module)
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


def schedule_of(config: OptimizerConfig, *, steps: int, batch_size: int) -> WarmupCosine:
    """Return the learning rate: linear warm-up to the peak, then a cosine down to the floor.

    Args:
        config: peak, the batch size it is meant for, warm-up share and floor share.
        steps: of the whole run.
        batch_size: of the run, samples per step; the peak is scaled with it where asked.
    """
    scale = batch_size / config.lr_batch if config.lr_batch else 1.0
    warmup = round(config.warmup * steps)
    return WarmupCosine(peak=config.lr * scale, steps=steps, warmup=warmup, floor=config.floor)


def layer_depths(
    module: nn.Module,
    student: Student,
    *,
    layer_decay: float,
    config: StudentConfig,
    image_size: tuple[int, int],
) -> dict[str, int]:
    """Number the layers of a student inside a module, 0 the stem, if there is layer decay.

    Args:
        module: that holds the student somewhere; whatever else it holds has the full rate.
        student: whose backbone's layers are numbered.
        layer_decay: 1: none.
        config: how the student was built.
        image_size: (H, W) in pixels that it was built for.

    Returns:
        Depth by parameter name of the module; empty without layer decay. A final norm has none: as
        published, it learns like what comes after the backbone.

    Raises:
        ConfigError: a backbone whose layers timm does not know.
    """
    if layer_decay == 1.0:
        return {}
    from distill.students.timm_names import layer_numbers

    numbers = layer_numbers(student.backbone, config, image_size=image_size)
    prefix = next(name for name, inner in module.named_modules() if inner is student.backbone)
    return {f"{prefix}.{n}": number for n, number in numbers.items() if not FINAL_NORM.match(n)}

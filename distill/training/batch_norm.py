"""Batch norm across ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.methods.base import Method

CONVERTIBLE = (_BatchNorm.forward, BatchNormAct2d.forward, nn.SyncBatchNorm.forward)
"""What layers compute that timm's converter knows."""
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


def share_batch_norm(module: nn.Module) -> None:
    """Let a module's batch norm layers share their statistics between ranks.

    PyTorch's converter would make a bare batch norm of timm's, whose layers hold the activation,
    too: `efficientnet_b0` lost 48 of them. What listens to a layer goes on to.

    Raises:
        ConfigError: a batch norm of the user's own, of whose forward pass nothing would be left.
    """
    before = dict(module.named_modules())
    for name, layer in before.items():
        if isinstance(layer, _BatchNorm) and type(layer).forward not in CONVERTIBLE:
            got = f"{type(layer).__name__} at {name}, whose forward pass is its own"
            hint = "Set sync_batchnorm: off."
            raise ConfigError(Problem("sync_batchnorm", got, "PyTorch's or timm's layers", hint))
    convert_sync_batchnorm(module)
    for name, layer in module.named_modules():
        if layer is not (old := before[name]):
            for hooks in HOOKS:
                setattr(layer, hooks, getattr(old, hooks))


def shares_statistics(sync_batchnorm: str, *, ranks: int, device: str) -> bool:
    """Tell whether batch norm's statistics are shared; arguments as a run has them."""
    return ranks > 1 and device == "cuda" and sync_batchnorm != "off"


def partial_statistics(
    method: Method,
    *,
    batch_size: int,
    parts: int,
    sync_batchnorm: str,
    ranks: int,
    device: str,
) -> list[str]:
    """Say which statistics are of a part of the batch, and so depend on its division.

    Args:
        method: with or without batch norm.
        batch_size: samples per step, over all ranks.
        parts: forward passes per step.
        sync_batchnorm: auto, on or off.
        ranks: processes that share a batch.
        device: "cpu" or "cuda".

    Returns:
        Lines for the user.
    """
    lines, part = [], batch_size // parts
    if method.over_batch and parts > 1:
        lines.append(
            f"{method.over_batch} are of {part} samples, a part of the batch (accumulate), not of "
            f"{batch_size}: the loss is another one than that of the whole batch"
        )
    shared = shares_statistics(sync_batchnorm, ranks=ranks, device=device)
    norms = any(isinstance(layer, _BatchNorm) for layer in method.modules())
    seen = part if shared else part // ranks
    if norms and seen < batch_size:
        lines.append(
            f"batch norm's statistics are of {seen} samples at a time, not of the batch's "
            f"{batch_size}"
        )
    return lines

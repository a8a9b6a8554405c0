"""Batch norm across ranks."""

from __future__ import annotations

from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamshard.errors import ConfigError, Problem

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

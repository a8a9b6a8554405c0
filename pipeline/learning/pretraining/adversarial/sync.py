"""Statistics and gradients over all processes, so that any number of them trains as one does.

Everything differentiable here is a sum over processes, whose derivative is a sum over processes
again: gradients of gradients (R1, gradient penalties) are right, too. Each process has the mean
loss of its own share; averaging the gradients of the weights gives those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from pipeline.learning.ranks import rank_count, this_rank


def summed(value: Tensor) -> Tensor:
    """Sum a tensor of one shape over the processes, any number of times differentiable."""
    return value if rank_count() == 1 else _Sum.apply(value)  # pyright: ignore[reportReturnType]


def whole_batch(rows: Tensor) -> Tensor:
    """Stack shares (B, ...) of all processes to the whole batch (processes x B, ...)."""
    ranks, own = rank_count(), this_rank()
    if ranks == 1:
        return rows
    empty = torch.zeros_like(rows)
    return summed(torch.cat([rows if rank == own else empty for rank in range(ranks)]))


def own_share(rows: Tensor) -> Tensor:
    """Take this process's share (B, ...) of a whole batch (processes x B, ...)."""
    share = len(rows) // rank_count()
    return rows[this_rank() * share : (this_rank() + 1) * share]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of every channel over the whole batch, float32 (C,) each.

    Args:
        x: (B, C, ...), this process's share; all shares are of one size.
    """
    x = x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if rank_count() == 1:
        var, mean = torch.var_mean(x, dim=axes, correction=0)
        return mean, var
    mean = summed(x.mean(axes)) / rank_count()
    centred = x - mean.view(1, -1, *[1] * (x.ndim - 2))
    return mean, summed(centred.square().mean(axes)) / rank_count()


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their means over the processes; one exchange for each number format."""
    if rank_count() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in by_dtype.values():
        flat = torch.cat([grad.flatten() for grad in grads])
        distributed.all_reduce(flat)
        flat /= rank_count()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view(grad.shape))


class _Sum(torch.autograd.Function):
    """Sum over processes; every process has its part of the derivative of every result."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0])  # pyright: ignore[reportReturnType]

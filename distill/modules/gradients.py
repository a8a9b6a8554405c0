"""How hard a term of the loss pulls at the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norm(value: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of a scalar's gradient at some tensors, 0 where it reaches none.

    Args:
        value: a scalar whose graph is kept.
        places: tensors it may depend on.
    """
    if not value.requires_grad:
        return torch.zeros_like(value)
    with torch.autocast(value.device.type, enabled=False):  # of the backward pass's own formats
        gradients = torch.autograd.grad(value, places, retain_graph=True, allow_unused=True)
    squares = [each.float().square().sum() for each in gradients if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(value).detach()

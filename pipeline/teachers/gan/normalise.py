"""Batch normalisation for inference: one scale and one shift per channel, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def standardise(
    x: Tensor, mean: Tensor, var: Tensor, gain: Tensor, bias: Tensor, *, eps: float
) -> Tensor:
    """Subtract a mean, divide by a standard deviation, then scale and shift.

    Args:
        x: (N, C, H, W) of any floating-point type, which the result keeps.
        mean, var: float32 (C,), the stored statistics.
        gain, bias: float32 (C,) or (N, C).
        eps: added to the variance.
    """
    scale = gain * (var + eps).rsqrt()
    shift = bias - mean * scale
    scale, shift = (each.view(-1, x.shape[1], 1, 1).to(x.dtype) for each in (scale, shift))
    return torch.addcmul(shift, x, scale)

"""Images as networks take and give them: the one way from uint8 to float and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def signed(pixels: Tensor) -> Tensor:
    """Turn uint8 (N, H, W, 3) into float32 (N, 3, H, W) in [-1, 1], in channels-last order."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Round images (N, 3, H, W), nominally in [-1, 1], to uint8 (N, H, W, 3)."""
    import torch

    levels = (images.float().clip(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)

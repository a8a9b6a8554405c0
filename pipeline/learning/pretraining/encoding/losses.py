"""What an encoder is trained by: distances of images, of how they look, and of latents.

Source: Squeeze-and-Span, eq. 3, with the means of its code (L1 over all pixels, squared error over
all numbers of a latent).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-10
"""Added to the length of a cell's features, as in LPIPS."""


def pixel_distance(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the mean absolute error of images (N, 3, H, W)."""
    return F.l1_loss(reconstructions, images)


def latent_distance(latents: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean squared error of latents found (N, Z) or (N, layers, W).

    Args:
        latents: (N, Z); one for all layers where there are layers.
    """
    return F.mse_loss(predicted, spread(latents, predicted))


def spread(latents: Tensor, predicted: Tensor) -> Tensor:
    """Repeat latents (N, W) for the layers of what was found, if it has layers."""
    return latents[:, None].expand_as(predicted) if predicted.ndim > latents.ndim else latents


def perceptual_distance(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over levels of the mean over cells of squared differences of unit features.

    Args:
        own, other: level -> maps (N, C, h, w) or vectors (N, C), of images in the same order.

    Source: LPIPS (Zhang et al. 2018), eq. 1 with all channels' weights 1.
    """
    distances = [
        (_unit(maps) - _unit(other[level])).square().sum(1).mean() for level, maps in own.items()
    ]
    return torch.stack(distances).sum()


def _unit(maps: Tensor) -> Tensor:
    maps = maps.float()
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + EPS)

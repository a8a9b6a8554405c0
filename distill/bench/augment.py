"""Random crops and flips of whole batches on their device, every sample with numbers of its own.

Shapes: B samples, images float (B, 3, H, W), masks int64 (B, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.views import crop_grid
from pipeline.learning.precise import in_float32


@in_float32
def crop_and_flip(
    images: Tensor,
    masks: Tensor | None = None,
    *,
    smallest: float,
    flip: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Resize a random part of each image back to the image's size; mirror half of them.

    The part is drawn as `distill.data.views.crop_grid` does, with an area of `smallest` .. 1.

    Args:
        images: float, any normalisation.
        masks: classes of the pixels, resampled with nearest neighbour.
        smallest: smallest area, 0..1; 1 with `flip` alone mirrors only.
        flip: mirror half of the images.
        generator: on the CPU; None for torch's global one.

    Returns:
        The same shapes and dtypes.
    """
    scale, mirror = (smallest, 1.0), 0.5 if flip else 0.0
    grid = crop_grid(images, scale=scale, mirror=mirror, generator=generator).to(images.dtype)
    cropped = _sample(images, grid, mode="bilinear")
    if masks is None:
        return cropped, None
    moved = _sample(masks[:, None].float(), grid.float(), mode="nearest")
    return cropped, moved[:, 0].round().to(masks.dtype)


def _sample(values: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    return F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)

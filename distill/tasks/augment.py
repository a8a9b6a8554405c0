"""Random crops and flips of whole batches on their device, every sample with numbers of its own.

Shapes: B samples, images float (B, 3, H, W), masks int64 (B, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RATIO = (3 / 4, 4 / 3)


def crop_and_flip(
    images: Tensor,
    masks: Tensor | None = None,
    *,
    smallest: float,
    flip: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Resize a random part of each image back to the image's size; mirror half of them.

    The part's area is drawn from `smallest` .. 1 of the image's, its aspect ratio relative to the
    image's log-uniformly from 3/4 .. 4/3, as torchvision's RandomResizedCrop does. A part is never
    larger than the image, so bilinear interpolation needs no smoothing.

    Args:
        images: float, any normalisation.
        masks: classes of the pixels, resampled with nearest neighbour.
        smallest: smallest area, 0..1; 1 with `flip` alone mirrors only.
        flip: mirror half of the images.
        generator: on the CPU; None for torch's global one.

    Returns:
        The same shapes and dtypes.
    """
    count = len(images)
    area, ratio, right, down, side = torch.rand(5, count, generator=generator)
    area = smallest + (1 - smallest) * area
    low, high = torch.tensor(RATIO).log()
    ratio = (low + (high - low) * ratio).exp()
    wide, tall = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    if smallest == 1.0:
        wide, tall = torch.ones(count), torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide, tall
    theta[:, 0, 2], theta[:, 1, 2] = (1 - wide) * (2 * right - 1), (1 - tall) * (2 * down - 1)
    if flip:
        theta[:, 0, 0] *= torch.where(side < 0.5, -1.0, 1.0)
    shape = [count, 1, *images.shape[-2:]]
    grid = F.affine_grid(theta.to(images.device), shape, align_corners=False).to(images.dtype)
    cropped = _sample(images, grid, mode="bilinear")
    if masks is None:
        return cropped, None
    moved = _sample(masks[:, None].float(), grid.float(), mode="nearest")
    return cropped, moved[:, 0].round().to(masks.dtype)


def _sample(values: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    return F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)

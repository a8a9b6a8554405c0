"""Random views of whole batches on their device, every sample with random numbers of its own.

Shapes: B samples, images float (B, 3, H, W). Random numbers are PyTorch's global ones on the CPU,
which the trainer seeds before every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig

ASPECT = (3 / 4, 4 / 3)  # of a crop, as in torchvision's RandomResizedCrop
LUMA = (0.299, 0.587, 0.114)
RGB_TO_YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@in_float32
def random_view(
    images: Tensor,
    config: AugmentConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    shared: bool = False,
) -> Tensor:
    """Return one random view of each image: resized crop, mirror, colour jitter, gray.

    As the papers' torchvision transforms but for three things that make it one pass over a batch:
    the order of the colour changes is fixed, hue turns in YIQ instead of HSV, and a crop whose side
    would exceed the image is cut to it instead of drawn again.

    Args:
        images: float32 (B, 3, H, W), normalised by mean and std.
        config: ranges and chances.
        mean, std: per channel, of pixels in 0..1.
        shared: one draw for the whole batch, as in Squeeze-and-Span's official code.

    Returns:
        float32 (B, 3, H, W), normalised alike.
    """
    smallest, largest = config.crop_scale
    views = crop_and_mirror(images, scale=(smallest, largest), mirror=config.flip, shared=shared)
    if not any(config.jitter) and not config.grayscale:
        return views
    per_channel = (1, 3, 1, 1)
    shift = torch.tensor(mean, device=images.device).view(per_channel)
    scale = torch.tensor(std, device=images.device).view(per_channel)
    pixels = (views * scale + shift).clamp(0, 1)
    return (jitter(pixels, config, shared=shared).clamp(0, 1) - shift) / scale


@in_float32
def crop_and_mirror(
    images: Tensor, *, scale: tuple[float, float], mirror: float, shared: bool = False
) -> Tensor:
    """Resize a random part of each image back to the image's size; mirror some.

    Args:
        images: float (B, 3, H, W).
        scale: smallest and largest area of the part, relative to the image's (0..1].
        mirror: chance to be mirrored left to right (0..1).
        shared: one draw for the whole batch.

    Returns:
        The same shape, by bilinear interpolation.
    """
    grid = crop_grid(images[:1] if shared else images, scale=scale, mirror=mirror)
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


@in_float32
def crop_grid(
    images: Tensor,
    *,
    scale: tuple[float, float],
    mirror: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a part of each image, maybe mirrored, as the grid that samples it at the image's size.

    The part's aspect ratio relative to the image's is log-uniform over ASPECT. It is never larger
    than the image, so that bilinear interpolation needs no smoothing.

    Args:
        images: (B, 3, H, W); only the shape and the device count.
        scale: smallest and largest area of the part, relative to the image's (0..1].
        mirror: chance to be mirrored left to right (0..1).
        generator: on the CPU; None for torch's global one.

    Returns:
        float32 (B, H, W, 2), for `grid_sample` with align_corners False.
    """
    count = len(images)
    area, aspect, right, down, side = torch.rand(5, count, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * area
    low, high = (math.log(value) for value in ASPECT)
    if scale[0] == 1.0:
        low = high = 0.0  # the whole image: nothing to draw
    aspect = (low + (high - low) * aspect).exp()
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide, tall
    theta[:, 0, 2] = (1 - wide) * (2 * right - 1)
    theta[:, 1, 2] = (1 - tall) * (2 * down - 1)
    theta[:, 0, 0] *= torch.where(side < mirror, -1.0, 1.0)
    shape = [count, 1, *images.shape[-2:]]
    return F.affine_grid(theta.to(images.device), shape, align_corners=False)


@in_float32
def jitter(pixels: Tensor, config: AugmentConfig, *, shared: bool = False) -> Tensor:
    """Change brightness, contrast, saturation and hue of some images; make some gray.

    Args:
        pixels: float (B, 3, H, W) of 0..1.
        config: strengths and chances.
        shared: one draw for the whole batch.

    Returns:
        The same shape, not clamped.
    """
    count = len(pixels)
    drawn = torch.rand(5, 1 if shared else count).expand(5, count)
    strengths = torch.tensor(config.jitter)[:, None] * (drawn[4] < config.jitter_chance)
    factors = 1 + strengths * (2 * drawn[:4] - 1)  # around 1, hue too
    brightness, contrast, saturation, hue = factors.to(pixels.device, pixels.dtype)
    saturation = torch.where(
        torch.rand(1 if shared else count).to(pixels.device) < config.grayscale, 0.0, saturation
    )
    pixels = (pixels * brightness.view(-1, 1, 1, 1)).clamp(0, 1)
    luma = torch.tensor(LUMA, device=pixels.device, dtype=pixels.dtype)
    level = torch.einsum("c,bchw->b", luma, pixels) / pixels[0, 0].numel()  # mean gray
    blend = contrast.view(-1, 1, 1, 1)
    pixels = blend * pixels + (1 - blend) * level.view(-1, 1, 1, 1)
    return torch.einsum("bij,bjhw->bihw", _turn(saturation, 2 * math.pi * (hue - 1)), pixels)


def _turn(saturation: Tensor, angle: Tensor) -> Tensor:
    """Return the matrices (B, 3, 3) on RGB that scale and turn its chroma, the (I, Q) plane."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=torch.float64)
    to_rgb = torch.linalg.inv(to_yiq).to(saturation)
    turn = torch.zeros(len(saturation), 3, 3, device=saturation.device, dtype=saturation.dtype)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -saturation * angle.sin(), saturation * angle.sin()
    return to_rgb @ turn @ to_yiq.to(saturation)

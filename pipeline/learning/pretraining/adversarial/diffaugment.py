"""DiffAugment: the same random changes for real and generated images, with gradients.

Source: Zhao et al. 2020, section 4.2 and its code: colour, translation by up to an eighth of the
side, a square cut out of half the side.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

POLICIES = ("color", "translation", "cutout")
NUMBERS = 7
"""Random numbers per image."""
TRANSLATED, CUT = 0.125, 0.5


def diffaugment(images: Tensor, drawn: Tensor, *, policies: Collection[str]) -> Tensor:
    """Change images by numbers drawn for each.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        drawn: (N, NUMBERS), uniform in [0, 1).
        policies: of `POLICIES`.
    """
    numbers = drawn.to(images.dtype).view(len(images), NUMBERS, 1, 1, 1)
    if "color" in policies:
        images = _coloured(images, *numbers[:, :3].unbind(1))
    if "translation" in policies:
        images = _moved(images, drawn[:, 3:5])
    if "cutout" in policies:
        images = _cut(images, drawn[:, 5:7])
    return images


def _coloured(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _moved(x: Tensor, drawn: Tensor) -> Tensor:
    """Move every image by whole pixels; zeros come in."""
    for axis, size in ((2, x.shape[2]), (3, x.shape[3])):
        most = int(size * TRANSLATED + 0.5)
        by = (drawn[:, axis - 2] * (2 * most + 1)).long() - most
        places = torch.arange(size, device=x.device) + by[:, None]
        shape = [len(x), 1, 1, 1]
        shape[axis] = size
        inside = ((places >= 0) & (places < size)).view(shape)
        index = places.clamp(0, size - 1).view(shape).expand(x.shape)
        x = x.gather(axis, index) * inside
    return x


def _cut(x: Tensor, drawn: Tensor) -> Tensor:
    """Put zeros into a square of each image."""
    kept = []
    for axis, size in ((0, x.shape[2]), (1, x.shape[3])):
        length = int(size * CUT + 0.5)
        start = (drawn[:, axis] * (size + 1 - length % 2)).long() - length // 2
        places = torch.arange(size, device=x.device) - start[:, None]
        kept.append((places < 0) | (places >= length))
    return x * (kept[0][:, None, :, None] | kept[1][:, None, None, :])

"""Adaptive augmentation: geometry and colour, each change with a probability that training sets.

Differences to the official pipeline, stated: images are resampled bilinearly, with reflected edges
and without its wavelet filters. Source: Karras et al. 2020 (ADA), section 3 and appendix B, `bgc`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NUMBERS = 26
"""Random numbers per image: 13 that decide, 13 that say how much."""
EXACT, SCALE, TURN = 0.125, 0.2, math.pi
BRIGHT, CONTRAST, SATURATION = 0.2, 0.5, 1.0


def adaptive(images: Tensor, drawn: Tensor, *, strength: float) -> Tensor:
    """Change images, each change with a probability.

    Args:
        images: (N, 3, S, S) in [-1, 1].
        drawn: (N, NUMBERS), uniform in [0, 1).
        strength: the probability, 0..1.
    """
    if strength <= 0:
        return images
    count = NUMBERS // 2
    chosen, amount = drawn[:, :count], drawn[:, count:]
    normal = torch.special.ndtri(amount.double().clamp(1e-6, 1 - 1e-6)).float()
    on = chosen < strength
    theta = _geometry(on, amount, normal, chosen < 1 - math.sqrt(1 - min(strength, 1.0)))
    grid = F.affine_grid(theta[:, :2], list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return _coloured(moved, _colour(on, amount, normal))


def next_strength(strength: float, sign: float, *, target: float, images: int, speed: int) -> float:
    """Return the strength after some images; it moves by 1 in `speed` images.

    Args:
        strength: before.
        sign: mean sign of the discriminator's scores of real images.
        target: of that.
        images: seen since the strength was set (count).
    """
    step = (1 if sign > target else -1 if sign < target else 0) * images / speed
    return min(1.0, max(0.0, strength + step))


def _geometry(on: Tensor, amount: Tensor, normal: Tensor, turned: Tensor) -> Tensor:
    """Compose where each pixel comes from: (N, 3, 3) in coordinates of -1..1."""
    zero = torch.zeros_like(amount[:, 0])

    def chosen(number: int, value: Tensor, otherwise: float = 0.0) -> Tensor:
        return torch.where(on[:, number], value, zero + otherwise)

    flip = chosen(0, 1 - 2 * (amount[:, 0] < 0.5).float(), 1.0)
    quarter = chosen(1, (amount[:, 1] * 4).floor() * (math.pi / 2))
    whole = [chosen(2, (amount[:, k] * 2 - 1) * 2 * EXACT) for k in (2, 3)]
    size = chosen(4, torch.exp2(normal[:, 4] * SCALE), 1.0)
    turns = [torch.where(turned[:, k], (amount[:, k] * 2 - 1) * TURN, zero) for k in (5, 6)]
    squeeze = chosen(7, torch.exp2(normal[:, 7] * SCALE), 1.0)
    fraction = [chosen(8, normal[:, k] * 2 * EXACT) for k in (8, 3)]
    one = zero + 1
    parts = (
        _scaled(flip, one), _rotated(quarter), _shifted(*whole), _scaled(size, size),
        _rotated(turns[0]), _scaled(squeeze, 1 / squeeze), _rotated(turns[1]), _shifted(*fraction),
    )  # fmt: skip
    whole_change = parts[0]
    for part in parts[1:]:
        whole_change = whole_change @ part
    return whole_change


def _colour(on: Tensor, amount: Tensor, normal: Tensor) -> Tensor:
    """Compose colour changes: (N, 4, 4), of RGB and 1."""
    count, device = len(on), on.device
    eye = torch.eye(4, device=device).repeat(count, 1, 1)
    luma = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device) / math.sqrt(3)
    along = luma[:, None] * luma

    def where(number: int, change: Tensor) -> Tensor:
        return torch.where(on[:, number, None, None], change, eye)

    bright = eye.clone()
    bright[:, :3, 3] = normal[:, 9, None] * BRIGHT
    contrast = eye * torch.exp2(normal[:, 10] * CONTRAST)[:, None, None]
    contrast[:, 3, 3] = 1
    flipped = eye - 2 * along * (amount[:, 10, None, None] < 0.5)
    hue = _around_luma((amount[:, 11] * 2 - 1) * math.pi)
    saturation = along + (eye - along) * torch.exp2(normal[:, 12] * SATURATION)[:, None, None]
    saturation[:, 3, 3] = 1
    return (
        where(12, saturation) @ where(11, hue) @ where(3, flipped) @ where(10, contrast)
        @ where(9, bright)
    )  # fmt: skip


def _around_luma(angle: Tensor) -> Tensor:
    """Rotate colours about the grey axis: (N, 4, 4)."""
    axis = 1 / math.sqrt(3)
    cross = torch.tensor(
        [[0, -axis, axis], [axis, 0, -axis], [-axis, axis, 0]], device=angle.device
    )
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    third = torch.full((3, 3), 1 / 3, device=angle.device)
    turned = torch.eye(4, device=angle.device).repeat(len(angle), 1, 1)
    turned[:, :3, :3] = torch.eye(3, device=angle.device) * cos + cross * sin + third * (1 - cos)
    return turned


def _coloured(images: Tensor, change: Tensor) -> Tensor:
    flat = images.flatten(2)
    return (change[:, :3, :3] @ flat + change[:, :3, 3:]).view(images.shape)


def _scaled(across: Tensor, down: Tensor) -> Tensor:
    zero = torch.zeros_like(across)
    return torch.stack([across, zero, zero, zero, down, zero, zero, zero, zero + 1], 1).view(
        -1, 3, 3
    )


def _rotated(angle: Tensor) -> Tensor:
    zero, cos, sin = torch.zeros_like(angle), angle.cos(), angle.sin()
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], 1).view(-1, 3, 3)


def _shifted(across: Tensor, down: Tensor) -> Tensor:
    zero = torch.zeros_like(across)
    one = zero + 1
    return torch.stack([one, zero, across, zero, one, down, zero, zero, one], 1).view(-1, 3, 3)

"""Geometric changes of training images that the network is told of, so that samples have none.

Told a change, a network learns to draw changed images; told none, as whoever draws or encodes
tells it, it draws plain ones: the augmentation does not leak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamshard import rng

LABELS = 8
"""Numbers that tell a change: upside down, scale, turn (2), stretch (2), shift (2)."""
SPREAD, SHIFT = 0.2, 0.125
"""Standard deviations: of the base-2 logarithm of scales, and of shifts as shares of a side."""


def change(
    images: Tensor, *, seed: int, positions: Sequence[int], probability: float
) -> tuple[Tensor, Tensor]:
    """Change each image by what its position draws: turned over, scaled, turned, stretched, moved.

    Args:
        images: float32 (N, C, H, W).
        seed: of the draws.
        positions: of the images in the endless stream.
        probability: of each kind of change, 0..1.

    Returns:
        the images, their borders reflected, and what the network is told: float32 (N, 8), zeros
        for an image that is as it was.

    Source: EDM (Karras et al. 2022), appendix F.2; mirroring is left to the source.
    """
    chance = rng.uniform(seed, positions, 0, "pretrain-changes", (5,)) < probability
    size = rng.normal(seed, positions, 0, "pretrain-change-size", (5,)).astype(np.float64)
    turn = (rng.uniform(seed, positions, 0, "pretrain-change-turn", (3,)) * 2 - 1) * math.pi
    over = chance[:, 0] & (turn[:, 2] > 0)
    scale = size[:, 0] * chance[:, 1]
    angle = turn[:, 0] * chance[:, 2]
    stretch, along = size[:, 1] * chance[:, 3], turn[:, 1]
    shift = size[:, 2:4] * chance[:, 4, None]
    told = [
        over.astype(np.float64), scale, np.cos(angle) - 1, np.sin(angle),
        stretch * np.cos(along), stretch * np.sin(along), *shift.T,
    ]  # fmt: skip
    matrix = _scaling(1 + 0 * scale, np.where(over, -1.0, 1.0))
    matrix = _scaling(2 ** (SPREAD * scale), 2 ** (SPREAD * scale)) @ matrix
    matrix = _turning(-angle) @ matrix
    wide = 2 ** (SPREAD * stretch)
    matrix = _turning(along) @ _scaling(wide, 1 / wide) @ _turning(-along) @ matrix
    affine = np.concatenate([matrix, 2 * SHIFT * shift[:, :, None]], axis=2).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(affine).to(images.device), list(images.shape), False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    kept = torch.from_numpy(~chance.any(1)).to(images.device)[:, None, None, None]
    labels = torch.from_numpy(np.stack(told, 1).astype(np.float32)).to(images.device)
    return torch.where(kept, images, moved), labels


def _scaling(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(across)
    return np.stack([np.stack([across, zero], -1), np.stack([zero, down], -1)], -2)


def _turning(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)

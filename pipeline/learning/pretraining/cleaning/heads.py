"""A copy that sees clean images, and heads that turn what it finds into what noise leaves of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamshard import rng
from pipeline.learning.precise import in_float32

STRATA = 3
"""Equal parts of the timesteps from which the images of a batch draw in turns (count)."""
PERIOD = 10_000.0


class Head(nn.Module):
    """Map a clean feature to the noisy one of a timestep, cell by cell.

    Its last layer begins at zero: it begins as the identity.

    Args:
        channels: of the level.
        width: numbers that tell the timestep (count).
        depth: layers (count).

    Source: CleanDIFT (arXiv 2412.03439), section 3.2.
    """

    def __init__(self, channels: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.tell = nn.ModuleList(nn.Linear(width, 2 * channels) for _ in range(depth))
        self.first = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(depth))
        self.last = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(depth))
        for layer in self.last:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, clean: Tensor, share: Tensor) -> Tensor:
        """Return the predicted noisy features.

        Args:
            clean: (N, C, h, w).
            share: (N,), the timestep as a share of the schedule, 0..1.
        """
        told = self.time(_waves(share, self.width))
        x = clean
        for tell, first, last in zip(self.tell, self.first, self.last, strict=True):
            scale, shift = tell(told)[:, :, None, None].chunk(2, dim=1)
            x = x + last(F.gelu(first(F.group_norm(x, 1) * (1 + scale) + shift)))
        return x


class Cleaner(nn.Module):
    """Train a copy of a network beside one head per level; the heads are dropped afterwards.

    Args:
        network: the copy, on its device.
        heads: level -> head, in the order of the levels.
    """

    def __init__(self, network: nn.Module, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.network = network
        self.names = list(heads)
        self.heads = nn.ModuleList(heads.values())

    def predicted(self, maps: Mapping[str, Tensor], share: Tensor) -> dict[str, Tensor]:
        """Return what the heads make of the copy's maps, level -> (N, C, h, w)."""
        pairs = zip(self.names, self.heads, strict=True)
        return {name: head(maps[name], share) for name, head in pairs}


@in_float32
def unlikeness(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - the mean cosine of the features (N, C, h, w) of each cell."""
    return 1 - F.cosine_similarity(predicted, wanted, dim=1).mean()


def draw_timesteps(
    count: int, *, highest: float, seed: int, positions: Sequence[int]
) -> np.ndarray:
    """Draw a timestep per position: the images of a batch take the strata in turns.

    Args:
        count: timesteps of the schedule.
        highest: share of them that is drawn from, 0..1.
        seed: of the draws.
        positions: of the images in the endless stream.

    Returns:
        int64 (N,), below `count`.
    """
    within = rng.uniform(seed, positions, 0, "clean-timestep", ())
    part = np.asarray(positions) % STRATA
    most = max(1, int(highest * count))
    return np.minimum(((part + within) / STRATA * most).astype(np.int64), most - 1)


def _waves(share: Tensor, width: int) -> Tensor:
    rates = torch.exp(-math.log(PERIOD) * torch.arange(width // 2, device=share.device) / width * 2)
    angles = 1000 * share[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))

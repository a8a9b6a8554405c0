"""The feature regressor: something on the deepest map, an FPN down to the finest, a head per level.

Discarded after training. Shapes: B samples, C channels; stride s means a map of (H/s, W/s) cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RegressorKind = Literal["fpn_ppm", "fpn", "fpn_attention", "pafpn"]
PPM_SCALES = (1, 2, 3, 6)
HEAD_WIDTH = 64  # channels per attention head, as usual in transformers
TIME_WIDTH = 64  # numbers that tell a timestep


class ConvBlock(nn.Sequential):
    """Convolution that keeps the resolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class PyramidPooling(nn.Module):
    """Mix a map with its averages over 1x1, 2x2, ... regions, so that each cell sees the image.

    Source: DreamTeacher, section 3.1 (PPM); its inside follows UPerNet: pool, 1x1 convolution,
    bilinear back to size, concatenate, 3x3 convolution.
    """

    def __init__(self, channels: int, *, width: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.branches = nn.ModuleList(ConvBlock(channels, width, kernel=1) for _ in self.scales)
        self.fuse = ConvBlock(channels + width * len(self.scales), width, kernel=3)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, width, h, w)."""
        size = features.shape[-2:]
        pooled = [
            F.interpolate(
                branch(F.adaptive_avg_pool2d(features, scale)), size=size, mode="bilinear"
            )
            for scale, branch in zip(self.scales, self.branches, strict=True)
        ]
        return self.fuse(torch.cat([features, *pooled], dim=1))


def fitting_scales(scales: Sequence[int], *, map_size: tuple[int, int]) -> tuple[int, ...]:
    """Return the pooling scales that a map has cells for, the coarsest always among them.

    A 4x4 map takes 1, 2 and 3 of (1, 2, 3, 6): six regions over four cells would only repeat them.
    """
    return tuple(scale for scale in scales if scale <= min(map_size)) or (min(scales),)


class SelfAttention(nn.Module):
    """Let every cell of a map attend to every other, as a residual: x + attention(norm(x)).

    Source: the "FPN + attention layer" of DreamTeacher's table 8, which says no more than that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(
            width, num_heads=max(1, width // HEAD_WIDTH), batch_first=True
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        cells = self.norm(features.flatten(2).transpose(1, 2))  # (B, h*w, width)
        mixed, _ = self.attention(cells, cells, cells, need_weights=False)
        return features + mixed.transpose(1, 2).reshape(features.shape)


class BottomUp(nn.Module):
    """Carry a pyramid's fine maps back up: N_i = conv(P_i + down(N_{i-1})), finest first.

    Source: PANet, section 3.1 (bottom-up path augmentation); DreamTeacher's table 8 (PaFPN).
    """

    def __init__(self, width: int, *, maps: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(ConvBlock(width, width, kernel=3) for _ in range(maps - 1))
        self.fuses = nn.ModuleList(ConvBlock(width, width, kernel=3) for _ in range(maps - 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map a pyramid, finest first, to one of the same shapes."""
        merged = [maps[0]]
        for down, fuse, features in zip(self.downs, self.fuses, maps[1:], strict=True):
            # The sizes of two strides need not divide, so the finer map is pooled to the coarser's.
            height, width = features.shape[-2:]
            below = F.adaptive_avg_pool2d(down(merged[-1]), (height, width))
            merged.append(fuse(features + below))
        return merged


class TimedHead(nn.Module):
    """Predict one map at any of its timesteps: a pointwise block told t, then a 1x1 convolution.

    out(x + mix(silu(x * (1 + scale(t)) + shift(t)))); scale and shift begin as zero.

    Source: the heads of CleanDIFT (Stracke et al. 2024, arXiv 2412.03439), in their simplest form.
    """

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, 2 * width)
        )
        last = self.time[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mix = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: Tensor, timestep: int) -> Tensor:
        """Map (B, width, h, w) to (B, out_channels, h, w), as the teacher has it at a timestep."""
        told = time_embedding(timestep).to(features)
        scale, shift = self.time(told).view(2, 1, -1, 1, 1)
        return self.out(features + self.mix(F.silu(features * (1 + scale) + shift)))


def time_embedding(timestep: int) -> Tensor:
    """Return sines and cosines of a timestep at falling frequencies, float32 (TIME_WIDTH,)."""
    half = TIME_WIDTH // 2
    angles = timestep * 10_000 ** -(torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()])


class FeatureRegressor(nn.Module):
    """Predict every teacher level from a student's pyramid.

    Args:
        channels: the student's channels, finest map first.
        strides: the student's strides, finest first; one map each.
        levels: level name to (stride, channels); several levels may share a stride. Each is
            predicted from the student's map of that stride.
        map_size: (h, w) of the student's deepest map, which bounds the pooling scales.
        kind: fpn_ppm has pyramid pooling on the deepest map, fpn a 1x1 convolution, fpn_attention
            a self-attention layer after that, pafpn a bottom-up branch after the top-down one.
        width: channels inside the regressor; 256 in the paper.
        scales: regions per side of the pyramid pooling; those the map has no cells for are left
            out.
        timed: level name to (what shares a head, timestep), of levels that have none of their own.

    Source: DreamTeacher, section 3.1, table 8 and appendix (regressor).
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int],
        levels: Mapping[str, tuple[int, int]],
        map_size: tuple[int, int],
        kind: RegressorKind = "fpn_ppm",
        width: int = 256,
        scales: Sequence[int] = PPM_SCALES,
        timed: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        super().__init__()
        deepest = channels[-1]
        if kind == "fpn_ppm":
            fitting = fitting_scales(scales, map_size=map_size)
            self.top: nn.Module = PyramidPooling(deepest, width=width, scales=fitting)
        else:
            self.top = ConvBlock(deepest, width, kernel=1)
            if kind == "fpn_attention":
                self.top.append(SelfAttention(width))
        # A level's name has dots, which a module's name may not have: heads are kept in a list.
        self.level_names = tuple(levels)
        self.level_maps = tuple(tuple(strides).index(stride) for stride, _ in levels.values())
        self.timesteps = dict(timed or {})
        groups = {name: self.timesteps.get(name, (name, 0))[0] for name in levels}
        shared = {group for group, _ in self.timesteps.values()}
        depths = {groups[name]: out for name, (_, out) in levels.items()}
        self.head_places = [list(depths).index(groups[name]) for name in levels]
        self.heads = nn.ModuleList(
            TimedHead(width, out) if group in shared else nn.Conv2d(width, out, 1)
            for group, out in depths.items()
        )
        # Only what leads to a level: processes that train together need a gradient everywhere.
        used, last = set(self.level_maps), len(channels) - 1
        bottom_up = kind == "pafpn"
        self.first = 0 if bottom_up else min(used)
        smoothed = set(range(max(used) + 1)) if bottom_up else used
        # The pooled top has its 3x3 already (UPerNet); a plain FPN smooths its top as well.
        smoothed -= {last} if kind == "fpn_ppm" else set()
        self.laterals = nn.ModuleDict(
            {str(at): ConvBlock(channels[at], width, kernel=1) for at in range(self.first, last)}
        )
        self.smooths = nn.ModuleDict(
            {str(at): ConvBlock(width, width, kernel=3) for at in sorted(smoothed)}
        )
        self.bottom_up = BottomUp(width, maps=max(used) + 1) if bottom_up else None

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map the student's pyramid, finest first, to {level name: (B, C_level, h, w)}."""
        merged, predicted = self.pyramid(features), {}
        for name, index, place in zip(
            self.level_names, self.level_maps, self.head_places, strict=True
        ):
            told = self.timesteps[name][1:] if name in self.timesteps else ()
            predicted[name] = self.heads[place](merged[index], *told)
        return predicted

    def pyramid(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        """Fuse the student's pyramid, finest first, into maps of `width` channels each.

        Returns:
            Place of a map -> the fused map; of those that a level is predicted from, at least.
        """
        last = len(features) - 1
        merged = {last: self.top(features[-1])}
        for at in range(last - 1, self.first - 1, -1):
            size = features[at].shape[-2:]
            above = F.interpolate(merged[at + 1], size=size, mode="nearest")
            merged[at] = self.laterals[str(at)](features[at]) + above
        for at, smooth in self.smooths.items():
            merged[int(at)] = smooth(merged[int(at)])
        if self.bottom_up is None:
            return merged
        wanted = [merged[at] for at in range(max(self.level_maps) + 1)]
        return dict(enumerate(self.bottom_up(wanted)))

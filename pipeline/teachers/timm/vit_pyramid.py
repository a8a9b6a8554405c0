"""A feature pyramid on a plain transformer's last map, so that it can be distilled level by level.

The transformer stays as it is: the pyramid is a part beside the backbone, and is not exported with
it. Shapes: B samples, C channels; stride s means a map of (H/s, W/s) cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sizes of the maps relative to the transformer's own: strides 4, 8, 16, 32 of 16-pixel patches."""


def pyramid_strides(patch: int) -> tuple[int, ...]:
    """Return the strides a pyramid over patches of this size can have, ascending.

    Args:
        patch: pixels per side; 14 gives 7, 14 and 28, as 3.5 pixels are no stride.
    """
    return tuple(int(patch / scale) for scale in SCALES if (patch / scale).is_integer())


class SimpleFeaturePyramid(nn.Module):
    """Make maps of several strides from one: deconvolutions up, max pooling down.

    Stride patch/4 has two 2x2 deconvolutions with LayerNorm and GELU between, patch/2 has one,
    2 patch has a 2x2 max pooling. Channels halve with each deconvolution.

    Args:
        channels: of the transformer's map.
        patch: its stride, pixels per cell.
        strides: of the maps wanted, of `pyramid_strides(patch)`, ascending.

    Source: Li et al. 2022 (ViTDet), section 3, simple feature pyramid.
    """

    def __init__(self, channels: int, *, patch: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        branches = [_branch(channels, patch / stride) for stride in strides]
        self.branches = nn.ModuleList(branch for branch, _ in branches)
        self.channels = tuple(width for _, width in branches)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map [(B, C, h, w)] to one (B, C_s, h * patch/s, w * patch/s) per stride s."""
        return [branch(features[-1]) for branch in self.branches]


def _branch(channels: int, scale: float) -> tuple[nn.Module, int]:
    """Return what makes a map of this relative size, and its channels."""
    if scale < 1:
        return nn.MaxPool2d(2), channels
    if scale == 1:
        return nn.Identity(), channels
    half, quarter = channels // 2, channels // 4
    if scale == 2:
        return nn.ConvTranspose2d(channels, half, 2, stride=2), half
    up = nn.Sequential(
        nn.ConvTranspose2d(channels, half, 2, stride=2),
        LayerNorm2d(half),
        nn.GELU(),
        nn.ConvTranspose2d(half, quarter, 2, stride=2),
    )
    return up, quarter

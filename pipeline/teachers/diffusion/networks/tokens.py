"""What the diffusion transformers share: taps by depth, token grids, latent sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamshard.errors import ConfigError
from pipeline.teachers.diffusion.networks.description import fit_image_size
from pipeline.teachers.diffusion.networks.vae import LatentSpace, describe_vae
from pipeline.teachers.recording.taps import Tap

DEPTHS = {"d25": 0.25, "d50": 0.5, "d75": 0.75, "d100": 1.0}
"""Aliases by depth: after this share of the blocks. A stride alias means half depth."""


def latent_grid(
    path: Path,
    config: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    *,
    channels: int,
    patch: int,
) -> tuple[LatentSpace, tuple[int, int], tuple[int, int]]:
    """Return the VAE's space, the image size, and the token grid (rows, columns).

    Args:
        path: the `transformer` folder of a pipeline.
        channels: latent channels the network takes.
        patch: latent cells per side of a token.
    """
    space = describe_vae(path.parent, channels)
    own = config.get("sample_size")
    own = own * space.stride if isinstance(own, int) else own
    size, problems = fit_image_size(image_size, own, space.stride * patch)
    if problems:
        raise ConfigError(problems)
    cell = space.stride * patch
    return space, size, (size[0] // cell, size[1] // cell)


def block_taps(
    modules: Sequence[str], *, width: int, stride: int, grid: tuple[int, int], item: int
) -> list[Tap]:
    """List one tap per transformer block, `block.0` first; all have the same stride.

    Args:
        modules: dotted paths of the blocks in order.
        item: which output of a block holds the image's tokens.
    """
    return [
        Tap(f"block.{k}", module, width, stride, item=item, grid=grid)
        for k, module in enumerate(modules)
    ]


def depth_aliases(found: Sequence[Tap]) -> dict[str, str]:
    """Return aliases by share of the depth, and the stride's alias for half of it."""
    last = len(found) - 1
    picked = {
        name: found[max(0, min(last, round(share * len(found)) - 1))].name
        for name, share in DEPTHS.items()
    }
    return {**picked, f"s{found[0].stride}": picked["d50"]}

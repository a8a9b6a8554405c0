"""Taps by depth, for diffusion transformers: one per block, all of one stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.teachers.recording.taps import Tap

DEPTHS = {"d25": 0.25, "d50": 0.5, "d75": 0.75, "d100": 1.0}
"""Aliases by depth: after this share of the blocks. A stride alias means half depth."""


def block_taps(
    config: Mapping[str, Any],
    image_size: tuple[int, int],
    *,
    stride: int,
    item: int,
    single: int = 0,
) -> list[Tap]:
    """List one tap per transformer block, `block.0` first.

    Args:
        config: of the transformer.
        image_size: (height, width) in pixels.
        stride: image pixels per token.
        item: which output of a block holds the image's tokens.
        single: blocks of one stream that follow (count).
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    modules = [f"transformer_blocks.{k}" for k in range(int(config["num_layers"]))]
    modules += [f"single_transformer_blocks.{k}" for k in range(single)]
    grid = (image_size[0] // stride, image_size[1] // stride)
    return [
        Tap(f"block.{k}", module, width, stride, item=item, grid=grid)
        for k, module in enumerate(modules)
    ]


def depth_aliases(blocks: Sequence[Tap]) -> dict[str, str]:
    """Return aliases by share of the depth, and the stride's alias for half of it."""
    last = len(blocks) - 1
    picked = {
        name: blocks[max(0, min(last, round(share * len(blocks)) - 1))].name
        for name, share in DEPTHS.items()
    }
    return {**picked, f"s{blocks[0].stride}": picked["d50"]}

"""Taps by depth, for diffusion transformers: one per block, all of one stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreamshard.errors import TeacherError
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap


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
    width, depth = _width_and_depth(config)
    modules = [f"transformer_blocks.{k}" for k in range(depth)]
    modules += [f"single_transformer_blocks.{k}" for k in range(single)]
    grid = (image_size[0] // stride, image_size[1] // stride)
    return [
        Tap(f"block.{k}", module, width, stride, item=item, grid=grid)
        for k, module in enumerate(modules)
    ]


def depth_aliases(blocks: Sequence[Tap]) -> dict[str, str]:
    """Return aliases by share of the depth, and the stride's alias for half of it."""
    picked = taps.depth_aliases(blocks)
    return {**picked, f"s{blocks[0].stride}": picked["d50"]}


def _width_and_depth(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return a transformer's width and its blocks of two streams.

    Raises: TeacherError if its config does not say them.
    """
    names = ("num_attention_heads", "attention_head_dim", "num_layers")
    if missing := [name for name in names if type(config.get(name)) is not int]:
        raise TeacherError(
            f"the network's config.json: {missing[0]}: got nothing, needed a number."
        )
    heads, per_head, depth = (int(config[name]) for name in names)
    return heads * per_head, depth

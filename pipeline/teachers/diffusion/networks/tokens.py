"""Taps by depth, for diffusion transformers: two per block, all of one stride.

`block.k` is what block k adds up to. In DiT, SD3 and Flux a few fixed channels of it hold most of
its energy (massive activations), so a regression learns little else. `block.k.norm` is what the
next block sees of it, behind the normalisation told the timestep (AdaLN), which takes them down;
of the last block, what the output layer sees. The aliases stand for these.

Source: DiTF, arXiv 2505.18584 (SPair +9.4 by the correction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreamshard.errors import TeacherError
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap

NORM = ".norm"
RAW = (
    "of what a block adds up to, a few fixed channels may hold most of the energy (massive "
    "activations, arXiv 2505.18584): {name}.norm, what the next block sees, does not have them. "
    "`dreamshard inspect teacher PATH --samples 4` shows the strongest."
)
REASON = "d25 ... d100 and the stride stand for block.k.norm, free of massive activations"


def block_taps(
    config: Mapping[str, Any],
    image_size: tuple[int, int],
    *,
    stride: int,
    item: int,
    single: int = 0,
) -> list[Tap]:
    """List the taps of every transformer block, `block.0` and `block.0.norm` first.

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
    norms = [f"{module}.{'norm' if 'single' in module else 'norm1'}" for module in modules[1:]]
    listed = []
    for k, (module, norm) in enumerate(zip(modules, [*norms, "norm_out"], strict=True)):
        listed.append(Tap(f"block.{k}", module, width, stride, item=item, grid=grid))
        listed.append(Tap(f"block.{k}{NORM}", norm, width, stride, grid=grid))
    return listed


def depth_aliases(listed: Sequence[Tap]) -> dict[str, str]:
    """Return aliases by share of the depth, and the stride's alias for half of it."""
    picked = taps.depth_aliases([tap for tap in listed if tap.name.endswith(NORM)])
    return {**picked, f"s{listed[0].stride}": picked["d50"]}


def is_raw(tap: str) -> bool:
    """Tell whether a tap is a block's own sum, in which few channels may hold most energy."""
    return tap.startswith("block.") and not tap.endswith(NORM)


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

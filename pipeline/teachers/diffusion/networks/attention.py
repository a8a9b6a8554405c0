"""Taps inside the decoder's transformers of a latent UNet, and SDXL's defaults among them.

`up.i.j.block.k` is the output of basic block k of the transformer behind layer j; `up.i.j.q.k` the
query of its cross-attention. SDXL's plain outputs per resolution are far behind these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.teachers.recording.taps import Tap

SDXL = ("up.0.0.block.5", "up.1.0.block.0", "up.1.up")
"""Deepest first. Source: arXiv 2410.03558, appendix B.2 (i to iv) and B.4; tables 4 and 5. On
Bedroom-28 the sixth block of the first transformer has 45.3 mIoU, the last output of that
resolution 33.8."""
SDXL_REASON = (
    "strides stand for SDXL's better taps, inside its transformers and behind an upsampler, as its "
    "plain outputs per resolution are far behind (arXiv 2410.03558, appendix B.2)"
)


def attention_taps(
    config: Mapping[str, Any], *, stride: int, image_size: tuple[int, int]
) -> list[Tap]:
    """List the taps inside the decoder's transformers.

    Args:
        config: of a `UNet2DConditionModel`.
        stride: image pixels per cell of the network's input.
        image_size: (height, width) in pixels.
    """
    channels = [int(value) for value in config["block_out_channels"]]
    depth = config.get("layers_per_block", 2)
    layers = [int(d) for d in depth] if isinstance(depth, list) else [int(depth)] * len(channels)
    last, listed = len(channels) - 1, []
    for i, kind in enumerate(config["up_block_types"]):
        if "CrossAttn" not in kind:
            continue
        here, width = stride * 2 ** (last - i), channels[last - i]
        grid = (image_size[0] // here, image_size[1] // here)
        for j in range(layers[last - i] + 1):
            for k in range(_blocks(config, i, j)):
                inner = f"up_blocks.{i}.attentions.{j}.transformer_blocks.{k}"
                query = f"{inner}.attn2.to_q"
                listed.append(Tap(f"up.{i}.{j}.q.{k}", query, width, here, grid=grid))
                listed.append(Tap(f"up.{i}.{j}.block.{k}", inner, width, here, grid=grid))
    return listed


def sdxl_aliases(listed: Sequence[Tap]) -> dict[str, str]:
    """Return SDXL's aliases by stride; nothing for a network that is built otherwise."""
    strides = {tap.name: tap.stride for tap in listed}
    if any(name not in strides for name in SDXL):
        return {}
    return {f"s{strides[name]}": name for name in SDXL}


def _blocks(config: Mapping[str, Any], i: int, j: int) -> int:
    """Return how many basic blocks the transformer behind layer j of up block i has."""
    told = config.get("reverse_transformer_layers_per_block")
    if told is None:
        told = config.get("transformer_layers_per_block", 1)
        told = told[::-1] if isinstance(told, list) else told
    per_level = told[i] if isinstance(told, list) else told
    if isinstance(per_level, list):
        return int(per_level[j]) if j < len(per_level) else 0
    return int(per_level)

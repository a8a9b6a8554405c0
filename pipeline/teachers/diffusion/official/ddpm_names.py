"""Rename the tensors of DDPM's original layout (as in the PyTorch port and DDIM) to UNet2DModel's.

Original names count the levels of the decoder by resolution: `up.0` is the finest, the last one
computed. Source: Ho et al. 2020, official code; its layout in later latent diffusion code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
}
_LAYERS = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def is_original(names: Iterable[str]) -> bool:
    """Tell the original layout from UNet2DModel's by its time embedding's name."""
    return "temb.dense.0.weight" in names


def rename_key(key: str, levels: int) -> str:
    """Rename one tensor; one that is not DDPM's keeps its name.

    Args:
        key: name in the original layout.
        levels: resolutions of the network (count).
    """
    stem, _, leaf = key.rpartition(".")
    for old, new in _HEAD.items():
        if stem == old:
            return f"{new}.{leaf}"
        if stem.startswith(old + "."):
            return f"{new}.{_layer(stem[len(old) + 1 :], attention='attn' in old)}.{leaf}"
    match = re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)", stem)
    if match:
        way, level, kind, number, rest = match.groups()
        part = "resnets" if kind == "block" else "attentions"
        layer = _layer(rest, attention=kind == "attn")
        return f"{_block(way, int(level), levels)}.{part}.{number}.{layer}.{leaf}"
    match = re.fullmatch(r"(down|up)\.(\d+)\.(?:down|up)sample\.conv", stem)
    if match:
        part = f"{match[1]}samplers.0.conv"
        return f"{_block(match[1], int(match[2]), levels)}.{part}.{leaf}"
    return key


def _block(way: str, level: int, levels: int) -> str:
    return f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"


def _layer(name: str, *, attention: bool) -> str:
    return (_ATTENTION if attention else _LAYERS).get(name, name)


def with_resampling(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Add the convolutions of networks that resample without any (`resamp_with_conv: false`).

    Halving by the mean of 2x2 cells is a 3x3 convolution of stride 2 whose first four taps are a
    quarter; doubling by repeating cells needs the identity after it.

    Args:
        state: under UNet2DModel's names.
        config: of the UNet2DModel.
    """
    import torch

    whole = dict(state)
    if any(re.search(r"(down|up)samplers\.0\.conv\.", name) for name in whole):
        return whole  # it has some: where one is missing, the file is damaged
    widths = config["block_out_channels"]
    for way, columns in (("down", widths), ("up", widths[::-1])):
        for level, width in enumerate(columns[:-1]):
            stem = f"{way}_blocks.{level}.{way}samplers.0.conv"
            kernel = torch.zeros(width, width, 3, 3)
            own = torch.arange(width)
            if way == "down":
                kernel[own, own, :2, :2] = 0.25
            else:
                kernel[own, own, 1, 1] = 1.0
            whole[f"{stem}.weight"], whole[f"{stem}.bias"] = kernel, torch.zeros(width)
    return whole

"""Rename an ADM state dict to UNet2DModel's keys, and list its blocks as taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.teachers.diffusion.official.adm_layout import AdmLayout
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    from torch import Tensor

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_HEAD = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def module_names(layout: AdmLayout) -> dict[str, str]:
    """Map every ADM module that holds weights or is a block's child to its UNet2DModel path."""
    names: dict[str, str] = {**_HEAD, "middle_block.0": "mid_block.resnets.0"}
    names |= {
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    levels, depth = len(layout.widths), layout.num_res_blocks
    block = 1
    for level in range(levels):
        for j in range(depth):
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.resnets.{j}"
            names[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{j}"
            block += 1
        if level < levels - 1:
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.downsamplers.0"
            block += 1
    block = 0
    for up in range(levels):
        attends = layout.attention[levels - 1 - up]
        for j in range(depth + 1):
            names[f"output_blocks.{block}.0"] = f"up_blocks.{up}.resnets.{j}"
            if attends:
                names[f"output_blocks.{block}.1"] = f"up_blocks.{up}.attentions.{j}"
            if j == depth and up < levels - 1:
                child = 2 if attends else 1
                names[f"output_blocks.{block}.{child}"] = f"up_blocks.{up}.upsamplers.0"
            block += 1
    return names


def rename(
    state: Mapping[str, Tensor],
    layout: AdmLayout,
    *,
    heads: Callable[[int, bool], int],
    new_order: bool,
) -> dict[str, Tensor]:
    """Rename an ADM state dict to UNet2DModel's keys, splitting each `qkv`.

    Args:
        heads: (channels of an attention, whether it is on the way up) -> its number of heads.
        new_order: rows of `qkv` are [q | k | v]; else (legacy) [q | k | v] within each head.

    Returns:
        a state dict; keys that are not ADM's keep their names, so that they show up as surplus.
    """
    names = module_names(layout)
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, leaf = _split(key, names)
        if module is None:
            renamed[key] = tensor
        elif leaf.startswith("qkv."):
            count = heads(tensor.shape[0] // 3, module.startswith("up_blocks"))
            parts = _split_qkv(tensor, count, new_order=new_order)
            for part, value in zip("qkv", parts, strict=True):
                renamed[f"{module}.to_{part}.{leaf.removeprefix('qkv.')}"] = value
        elif leaf.startswith("proj_out."):
            flat = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
            renamed[f"{module}.to_out.0.{leaf.removeprefix('proj_out.')}"] = flat
        elif leaf.startswith("norm."):
            renamed[f"{module}.group_norm.{leaf.removeprefix('norm.')}"] = tensor
        elif leaf.startswith(("op.", "conv.")):
            renamed[f"{module}.conv.{leaf.partition('.')[2]}"] = tensor
        else:
            stem, _, end = leaf.rpartition(".")
            renamed[f"{module}.{_RESNET.get(stem, stem)}.{end}" if stem else f"{module}.{end}"] = (
                tensor
            )
    return renamed


def _split(key: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """Split a key into the new path of its module and the rest."""
    parts = key.split(".")
    for length in (3, 2, 1):
        stem = ".".join(parts[:length])
        if stem in names and len(parts) > length:
            return names[stem], ".".join(parts[length:])
    return None, key


def _split_qkv(tensor: Tensor, heads: int, *, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    flat = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    channels = flat.shape[0] // 3
    if new_order:
        q, k, v = flat.chunk(3)
        return q.contiguous(), k.contiguous(), v.contiguous()
    grouped = flat.reshape(heads, 3, channels // heads, *flat.shape[1:])
    q, k, v = (grouped[:, i].reshape(channels, *flat.shape[1:]) for i in range(3))
    return q, k, v


def block_taps(layout: AdmLayout) -> list[Tap]:
    """List taps under their official names, in the order they are computed.

    `input_blocks.k`, `middle_block` and `output_blocks.k` are the official blocks' outputs (the
    last block of a level is already upsampled); `up.i` is a level's last output before that.
    """
    names = module_names(layout)
    listed = [Tap("input_blocks.0", "conv_in", layout.widths[0], 1)]
    levels, depth = len(layout.widths), layout.num_res_blocks
    block = 1
    for level, width in enumerate(layout.widths):
        child = 1 if layout.attention[level] else 0
        for _ in range(depth):
            path = names[f"input_blocks.{block}.{child}"]
            listed.append(Tap(f"input_blocks.{block}", path, width, 2**level))
            block += 1
        if level < levels - 1:
            path = names[f"input_blocks.{block}.0"]
            listed.append(Tap(f"input_blocks.{block}", path, width, 2 ** (level + 1)))
            block += 1
    listed.append(Tap("middle_block", "mid_block", layout.widths[-1], 2 ** (levels - 1)))
    block = 0
    for up in range(levels):
        level = levels - 1 - up
        width, stride, child = layout.widths[level], 2**level, int(layout.attention[level])
        for j in range(depth + 1):
            path = names[f"output_blocks.{block}.{child}"]
            if j == depth:
                listed.append(Tap(f"up.{up}", path, width, stride))
            if j == depth and level > 0:
                path, stride = names[f"output_blocks.{block}.{child + 1}"], stride // 2
            listed.append(Tap(f"output_blocks.{block}", path, width, stride))
            block += 1
    return listed


def default_taps(layout: AdmLayout) -> list[Tap]:
    """Return the taps that strides stand for: of each stride the last output block.

    With two residual blocks per level these are output blocks 1, 4, 7, 10 for strides 32 to 4 of
    the 256-pixel network: our reading of DreamTeacher's "blocks 3, 6, 9, 12".
    """
    last: dict[int, Tap] = {}
    for tap in block_taps(layout):
        if tap.name.startswith("output_blocks."):
            last[tap.stride] = tap
    return list(last.values())

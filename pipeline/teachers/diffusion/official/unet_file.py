"""Pixel-space UNets in one file without a config: UNet2DModel weights, or the original DDPM's.

The architecture is read from names and shapes; what they do not tell (`image_size`, the attention's
`head_dim`) is asked for by name, and the rest is a setting with the default of its code. Files
saved by save_pretrained lie beside a config.json and are described by it (`unet.py`) instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.diffusion.networks import process
from pipeline.teachers.diffusion.networks.accepted import UNET
from pipeline.teachers.diffusion.networks.description import Description, build, fit_image_size
from pipeline.teachers.diffusion.networks.unet import UNetNetwork, unet_aliases, unet_taps
from pipeline.teachers.diffusion.official.ddpm_names import is_original, rename_key, with_resampling

if TYPE_CHECKING:
    import torch

SETTINGS: Mapping[str, Scalar] = {
    "image_size": None,
    "head_dim": None,
    "norm_num_groups": None,
    "norm_eps": None,
    "downsample_padding": None,
    "flip_sin_to_cos": None,
    "freq_shift": None,
    "act_fn": None,
    **process.SETTINGS,
}
"""head_dim: channels per attention head, 0 for one head. The six below it are UNet2DModel's, the
rest DDPMScheduler's; None is the default of the code that wrote the file, or asked for."""

DEFAULTS: dict[bool, dict[str, Scalar]] = {
    False: {
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    },
    True: {
        "head_dim": 0,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}
"""Whether the file is the original DDPM's -> what its code does."""

Shapes = Mapping[str, tuple[int, ...]]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe a file of weights from its shapes and the settings."""
    shapes = weights.shapes(path)
    original = is_original(shapes)
    given = {k: v for k, v in settings.items() if v is not None}
    own = {**DEFAULTS[original], **given}
    config, problems = _config(_modern(shapes), own, where=str(path))
    depth = len(config["block_out_channels"])
    size, wrong_size = fit_image_size(image_size, own.get("image_size"), 2 ** (depth - 1))
    if problems or wrong_size:
        raise ConfigError([*problems, *wrong_size])
    config["sample_size"] = own.get("image_size") or max(size)
    listed = unet_taps(config)
    noise = process.find_process(path.parent, settings, guess=True)

    def load(dtype: torch.dtype) -> UNetNetwork:
        state = _modern(weights.read([path]), flatten=True)
        state = with_resampling(state, config) if original else state
        return UNetNetwork(build("UNet2DModel", config, (path,), dtype, state=state))

    return Description(
        family="unet",
        image_size=size,
        taps=tuple(listed),
        aliases=unet_aliases(listed),
        schedule=noise.schedule,
        weights=(path,),
        architecture={"config": config, "scheduler": noise.config},
        space=(3, *size),
        load=load,
        classes=int(config["num_class_embeds"] or 0),
        notes=("architecture read from the shapes of a file without a config",),
        flags=(*_flags(own, given, config, original=original), *noise.flags),
    )


def _flags(
    own: Mapping[str, Scalar],
    given: Mapping[str, Scalar],
    config: Mapping[str, Any],
    *,
    original: bool,
) -> tuple[Flag, ...]:
    """Say where what the shapes do not tell comes from."""
    whose = "the original DDPM's" if original else "UNet2DModel's"
    names = (
        [*DEFAULTS[True]]
        if config["add_attention"]
        else [n for n in DEFAULTS[True] if n != "head_dim"]
    )
    return tuple(
        Flag(name=name, value=own[name], source="user")
        if name in given
        else Flag(name=name, value=own[name], source="default", whose=whose)
        for name in names
        if name in own
    )


def _modern(named: Mapping[str, Any], *, flatten: bool = False) -> dict[str, Any]:
    """Rename whatever the file has to today's UNet2DModel names; flatten 1x1 attention weights."""
    levels = sum(bool(re.fullmatch(r"(down|down_blocks)\.\d+", key)) for key in _parents(named))
    if is_original(named):
        named = {rename_key(key, levels): value for key, value in named.items()}
    renamed = weights.modern_names(cast(Any, named))
    if flatten:
        for name, value in renamed.items():
            if re.search(r"attentions\.\d+\.to_", name) and value.ndim > 2:
                renamed[name] = value.flatten(1)
    return renamed


def _parents(named: Mapping[str, Any]) -> set[str]:
    return {".".join(key.split(".")[:2]) for key in named}


def _config(
    shapes: Shapes, own: Mapping[str, Scalar], *, where: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Read a UNet2DModel config out of the shapes of its tensors."""
    try:
        config = _architecture(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise TeacherError(
            f"{where}: not a UNet2DModel ({type(error).__name__}: {error}). Put its config.json "
            "beside it."
        ) from error
    problems = [*_told_problems(own)]
    attends = "mid_block.attentions.0.to_q.weight" in shapes
    head, widths = own.get("head_dim"), config["block_out_channels"]
    if attends and type(head) is not int:
        hint = "The weights do not tell it; attention_head_dim in the network's config, 8 if absent"
        allowed = "channels per attention head, 0 for one head"
        problems.append(Problem("settings.head_dim", str(head or "nothing"), allowed, f"{hint}."))
    elif attends and head and any(w % cast(int, head) for w in _attention_widths(config)):
        allowed = f"a divisor of {_attention_widths(config)}, or 0"
        problems.append(Problem("settings.head_dim", str(head), allowed))
    groups = cast(int, own["norm_num_groups"])
    if type(groups) is not int or groups < 1 or any(width % groups for width in widths):
        allowed = f"a divisor of every width in {widths}"
        problems.append(Problem("settings.norm_num_groups", str(groups), allowed))
    names = ("norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_num_groups")
    config |= {name: own.get(name) for name in (*names, "act_fn")}
    config |= {"attention_head_dim": head or None, "attn_norm_num_groups": groups}
    return config, problems


def _told_problems(own: Mapping[str, Scalar]) -> list[Problem]:
    """Check what the shapes do not tell by the rules of a UNet2DModel's config."""
    problems = []
    for name in ("act_fn", "norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift"):
        got = "nothing" if own.get(name) is None else repr(own[name])
        if (allowed := UNET[name](own.get(name))) is not None:
            hint = (
                "The weights do not tell it. Say it, or put the network's config.json beside them."
            )
            problems.append(Problem(f"settings.{name}", got, allowed, hint))
    return problems


def _attention_widths(config: Mapping[str, Any]) -> list[int]:
    pairs = zip(config["block_out_channels"], config["down_block_types"], strict=True)
    return [width for width, kind in pairs if "Attn" in kind] + config["block_out_channels"][-1:]


def _architecture(shapes: Shapes) -> dict[str, Any]:
    levels = weights.count_numbered(shapes, r"down_blocks\.(\d+)\.")
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)]
    depth = weights.count_numbered(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")
    if "time_proj.weight" in shapes:
        raise ValueError("a learned or Fourier time embedding")
    residual = "down_blocks.0.downsamplers.0.conv1.weight" in shapes
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    plain = plain if residual else ("DownBlock2D", "UpBlock2D")
    down = [
        "AttnDownBlock2D" if f"down_blocks.{i}.attentions.0.to_q.weight" in shapes else plain[0]
        for i in range(levels)
    ]
    up = [
        "AttnUpBlock2D" if f"up_blocks.{i}.attentions.0.to_q.weight" in shapes else plain[1]
        for i in range(levels)
    ]
    embedded = shapes["mid_block.resnets.0.time_emb_proj.weight"][0]
    if shapes["conv_in.weight"][1] != 3:
        raise ValueError(f"{shapes['conv_in.weight'][1]} input channels, not RGB")
    return {
        "_class_name": "UNet2DModel",
        "in_channels": 3,
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": depth,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "resnet_time_scale_shift": "scale_shift" if embedded == 2 * widths[-1] else "default",
        "add_attention": "mid_block.attentions.0.to_q.weight" in shapes,
        "time_embedding_dim": shapes["time_embedding.linear_1.weight"][0],
        "num_class_embeds": shapes.get("class_embedding.weight", (None,))[0],
    }

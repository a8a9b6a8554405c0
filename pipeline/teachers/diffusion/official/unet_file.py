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
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.networks.description import (
    Description,
    build,
    fit_image_size,
    scheduler_config,
)
from pipeline.teachers.diffusion.networks.unet import UNetNetwork, unet_aliases, unet_taps
from pipeline.teachers.diffusion.official.ddpm_names import is_original, rename_key

if TYPE_CHECKING:
    import torch

SETTINGS: Mapping[str, Scalar] = {
    "image_size": None,
    "head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": None,
    "downsample_padding": None,
    "flip_sin_to_cos": None,
    "freq_shift": None,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
}
"""head_dim: channels per attention head, 0 for one head. The five below it are UNet2DModel's, the
last three DDPMScheduler's; None is the default of the code that wrote the file."""

DEFAULTS: dict[bool, dict[str, Scalar]] = {
    False: {
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    },
    True: {
        "head_dim": 0,
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
    own = {**DEFAULTS[original], **{k: v for k, v in settings.items() if v is not None}}
    config, problems = _config(_modern(shapes), own, where=str(path))
    depth = len(config["block_out_channels"])
    size, wrong_size = fit_image_size(image_size, own.get("image_size"), 2 ** (depth - 1))
    if problems or wrong_size:
        raise ConfigError([*problems, *wrong_size])
    config["sample_size"] = own.get("image_size") or max(size)
    listed = unet_taps(config)
    names = ("beta_schedule", "prediction_type", "num_train_timesteps")
    scheduler = scheduler_config(path.parent) or {name: own[name] for name in names}

    def load(dtype: torch.dtype) -> UNetNetwork:
        state = _modern(weights.read([path]), flatten=True)
        return UNetNetwork(build("UNet2DModel", config, (path,), dtype, state=state))

    return Description(
        family="unet",
        image_size=size,
        taps=tuple(listed),
        aliases=unet_aliases(listed),
        schedule=schedules.from_config(scheduler, where=str(path)),
        weights=(path,),
        architecture={"config": config, "scheduler": scheduler},
        space=(3, *size),
        load=load,
        classes=int(config["num_class_embeds"] or 0),
        notes=("architecture read from the shapes of a file without a config",),
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
    problems = []
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
    if groups < 1 or any(width % groups for width in widths):
        allowed = f"a divisor of every width in {widths}"
        problems.append(Problem("settings.norm_num_groups", str(groups), allowed))
    names = ("norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_num_groups")
    config |= {name: own[name] for name in names}
    config |= {"attention_head_dim": head or None, "attn_norm_num_groups": groups}
    return config, problems


def _attention_widths(config: Mapping[str, Any]) -> list[int]:
    pairs = zip(config["block_out_channels"], config["down_block_types"], strict=True)
    return [width for width, kind in pairs if "Attn" in kind] + config["block_out_channels"][-1:]


def _architecture(shapes: Shapes) -> dict[str, Any]:
    levels = 1 + max(_numbers(shapes, r"down_blocks\.(\d+)\."))
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)]
    depth = 1 + max(_numbers(shapes, r"down_blocks\.0\.resnets\.(\d+)\."))
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


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    return [int(match[1]) for key in shapes if (match := re.match(pattern, key))]

"""Official DiT and SiT checkpoints (`.pt`), run exactly on diffusers' DiT class.

The two share every tensor name, so `network` has to say which it is: DiT predicts noise on the
linear schedule of 1000 steps; SiT the velocity `data - noise` of the linear interpolant
`x_s = s data + (1 - s) noise`, told s itself. For SiT, timestep t means the noise share in
thousandths as for the other flow models, s = 1 - t/1000. A training file may hold averaged weights
beside the last ones; the averaged are taken. Neither file has the autoencoder: `vae` names it.

Sources: Peebles and Xie 2023 (DiT); Ma et al. 2024 (SiT); their official code.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.networks import tokens
from pipeline.teachers.diffusion.networks.description import (
    Description,
    fit_image_size,
    plain_config,
)
from pipeline.teachers.diffusion.networks.dit import DiTNetwork
from pipeline.teachers.diffusion.networks.vae import LatentSpace, read_vae
from pipeline.teachers.diffusion.schedules import Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = {"network": None, "vae": None, "num_heads": None}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published sizes S, B, L and XL, by width."""
FREQUENCIES = 256
"""Width of the sinusoidal timestep embedding."""

_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_HEAD = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
_SHARED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}


class SiTNetwork(DiTNetwork):
    """Run a SiT network; its velocity is turned round to `noise - data`."""

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        # Further output channels were never trained: the velocity is the first ones.
        return -super().__call__(x, time, labels)[:, : x.shape[1]]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe a checkpoint from its shapes, the setting `network` and the autoencoder."""
    config = read_config(weights.shapes(path), settings, where=str(path))
    kind, problems = settings["network"], []
    if kind not in ("dit", "sit"):
        hint = "The weights of the two look alike; their schedules and time differ."
        problems.append(Problem("settings.network", str(kind), "dit | sit", hint))
    if not settings["vae"]:
        hint = "The folder of its autoencoder; sd-vae-ft-ema or -mse for the published networks."
        problems.append(Problem("settings.vae", "nothing", "a folder of an AutoencoderKL", hint))
    if problems:
        raise ConfigError(problems)
    space = read_vae(Path(str(settings["vae"])), config["in_channels"])
    own = config["sample_size"] * space.stride
    size, problems = fit_image_size(image_size, own, space.stride * config["patch_size"])
    if size != (own, own):
        hint = "Its position embedding is made for one size."
        problems = [Problem("image_size", f"{size[0]}x{size[1]}", f"{own}x{own}", hint)]
    if problems:
        raise ConfigError(problems)
    return _description(path, config, space, size, kind=str(kind))


def _description(
    path: Path, config: dict[str, Any], space: LatentSpace, size: tuple[int, int], *, kind: str
) -> Description:
    stride = space.stride * config["patch_size"]
    listed = tokens.block_taps(config, size, stride=stride, item=0)
    network = SiTNetwork if kind == "sit" else DiTNetwork
    cells, classes = config["sample_size"], config["num_embeds_ada_norm"]
    return Description(
        family=kind,
        image_size=size,
        taps=(*listed, space.tap(size)),
        aliases=tokens.depth_aliases(listed),
        schedule=_schedule(kind),
        weights=(path, *space.files),
        architecture={"config": config, "network": kind, "vae": plain_config(space.config)},
        space=(config["in_channels"], cells, cells),
        load=lambda dtype: network(build(path, config, dtype), space.load(dtype)),
        classes=classes,
        null_class=classes,
        latent=True,
        vae=space.identity,
        notes=(f"{config['num_attention_heads']} attention heads", tokens.REASON),
    )


def _schedule(kind: str) -> Schedule:
    if kind == "dit":
        return schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    flow = schedules.flow()
    return dataclasses.replace(flow, time=flow.signal)


def read_config(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Scalar], *, where: str
) -> dict[str, Any]:
    """Read a DiTTransformer2DModel config out of an official file's shapes.

    Raises:
        ConfigError: the number of heads is not known for this width, or does not divide it.
        TeacherError: these are not a DiT's tensors.
    """
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        depth = weights.count_numbered(shapes, r"blocks\.(\d+)\.")
        outputs = shapes["final_layer.linear.weight"][0] // patch**2
        rows, places = shapes["y_embedder.embedding_table.weight"][0], shapes["pos_embed"][1]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise TeacherError(f"{where}: not a DiT or SiT network ({why}).") from error
    heads = settings["num_heads"] or HEADS.get(width)
    if type(heads) is not int or heads < 1 or width % heads:
        hint = "The weights do not tell the number of attention heads."
        allowed = f"a divisor of {width}"
        raise ConfigError(Problem("settings.num_heads", str(heads), allowed, hint))
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": outputs,
        "num_layers": depth,
        "sample_size": math.isqrt(places) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": rows - 1,  # the last row is "no class"
        "norm_eps": 1e-6,
    }


def build(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Build the DiTTransformer2DModel of an official checkpoint and load its weights.

    Raises: TeacherError if the file is damaged or holds other tensors than a DiT's.
    """
    from diffusers.models.embeddings import Timesteps
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    def make() -> Any:
        made: Any = DiTTransformer2DModel.from_config(dict(config))
        # diffusers gives every block a copy of the time and class embedding, with other
        # frequencies; the official network has one.
        shared = made.transformer_blocks[0].norm1.emb
        shared.time_proj = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        for block in made.transformer_blocks:
            block.norm1.emb = shared
        return made

    state = weights.read([path])
    places = state.pop("pos_embed")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if places.shape != (1, (config["sample_size"] // config["patch_size"]) ** 2, width):
        told = f"pos_embed {tuple(places.shape)}, not of a square of places {width:,} wide"
        raise TeacherError(f"{path}: not a DiT or SiT network ({told}).")
    weights.refuse_not_finite({"pos_embed": places}, where=str(path))
    module = weights.unbuilt(make, where=str(path))
    module.pos_embed.pos_embed = places
    renamed = rename(state, config["num_layers"])
    return weights.load_into(module, renamed, where=str(path), dtype=dtype)


def rename(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Rename an official state dict to DiTTransformer2DModel's keys, splitting each `qkv`.

    Keys that are not a DiT's keep their names, so that they show up as surplus.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stem, _, leaf = key.rpartition(".")
        match = re.match(r"blocks\.(\d+)\.(.+)", stem)
        if match and match[2] == "attn.qkv":
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                name = f"transformer_blocks.{match[1]}.attn1.to_{part}.{leaf}"
                renamed[name] = value.contiguous()
        elif match and match[2] in _BLOCK:
            renamed[f"transformer_blocks.{match[1]}.{_BLOCK[match[2]]}.{leaf}"] = tensor
        elif stem in _SHARED:
            for k in range(depth):
                renamed[f"transformer_blocks.{k}.norm1.emb.{_SHARED[stem]}.{leaf}"] = tensor
        else:
            renamed[f"{_HEAD[stem]}.{leaf}" if stem in _HEAD else key] = tensor
    return renamed

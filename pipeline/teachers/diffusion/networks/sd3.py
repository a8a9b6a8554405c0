"""Stable Diffusion 3 (`SD3Transformer2DModel`): rectified-flow transformers, recorded by depth.

Timestep t is the noise share in thousandths: `x_t = (1 - t/1000) x_0 + t/1000 eps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.networks import tokens
from pipeline.teachers.diffusion.networks.description import (
    Description,
    build,
    plain_config,
    scheduler_config,
)
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt, find_prompt
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SETTINGS: Mapping[str, Scalar] = {SETTING: None}


class SD3Network:
    """Run an `SD3Transformer2DModel` on latents with the empty prompt."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt) -> None:
        self.module: nn.Module = module
        self._prompt = prompt
        self.to_space, self.to_pixels = vae.to_space, vae.to_pixels

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        return self.module(
            hidden_states=x,
            encoder_hidden_states=self._prompt.embeds(x),
            pooled_projections=self._prompt.pooled(x),
            timestep=time,
            return_dict=False,
        )[0]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `transformer` folder of a Stable Diffusion 3 pipeline."""
    config = weights.read_json(path / "config.json")
    channels, patch = int(config.get("in_channels", 16)), int(config.get("patch_size", 2))
    space, size, grid = tokens.latent_grid(path, config, image_size, channels=channels, patch=patch)
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    modules = [f"transformer_blocks.{k}" for k in range(int(config["num_layers"]))]
    stride = space.stride * patch
    found = tokens.block_taps(modules, width=width, stride=stride, grid=grid, item=1)
    prompt = find_prompt(
        path.parent,
        settings[SETTING],
        width=int(config["joint_attention_dim"]),
        pooled=int(config["pooled_projection_dim"]),
    )
    files, scheduler = weights.find_weights(path), scheduler_config(path)

    def load(dtype: torch.dtype) -> SD3Network:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        module = build(SD3Transformer2DModel, config, files, dtype)
        return SD3Network(module, space.load(dtype), Prompt(prompt))

    return Description(
        family="sd3",
        image_size=size,
        taps=tuple(found),
        aliases=tokens.depth_aliases(found),
        schedule=schedules.flow(shift=float(scheduler.get("shift", 3.0))),
        weights=(*files, *space.files, prompt),
        architecture={
            "config": plain_config(config),
            "scheduler": plain_config(scheduler),
            "vae": plain_config(space.config),
        },
        space=(channels, size[0] // space.stride, size[1] // space.stride),
        load=load,
        latent=True,
        licence=weights.licence(path),
    )

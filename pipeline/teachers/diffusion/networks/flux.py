"""Flux (`FluxTransformer2DModel`): rectified-flow transformers on packed latents, by depth.

Timestep t is the noise share in thousandths, as for SD3. Blocks are numbered through: the
two-stream ones first, then the single-stream ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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

SETTINGS: Mapping[str, Scalar] = {SETTING: None, "guidance": 1.0}
"""guidance: what a guidance-distilled network (-dev) is told; 1 = none."""
PATCH = 2


class FluxNetwork:
    """Run a `FluxTransformer2DModel` on latents, packing 2x2 cells into a token."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt, guidance: float) -> None:
        self.module: nn.Module = module
        self._prompt, self._guidance = prompt, guidance
        self._guided = bool(module.config.guidance_embeds)
        self.to_space, self.to_pixels = vae.to_space, vae.to_pixels

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        rows, channels, height, width = x.shape
        grid = (height // PATCH, width // PATCH)
        cells = x.reshape(rows, channels, grid[0], PATCH, grid[1], PATCH)
        packed = cells.permute(0, 2, 4, 1, 3, 5).reshape(rows, grid[0] * grid[1], channels * 4)
        embeds = self._prompt.embeds(x)
        guidance = x.new_full((rows,), self._guidance) if self._guided else None
        found = self.module(
            hidden_states=packed,
            encoder_hidden_states=embeds,
            pooled_projections=self._prompt.pooled(x),
            timestep=time,
            img_ids=_places(grid, x),
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        cells = found.reshape(rows, *grid, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(rows, channels, height, width)


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `transformer` folder of a Flux pipeline."""
    config = weights.read_json(path / "config.json")
    channels = int(config.get("in_channels", 64)) // PATCH**2
    space, size, grid = tokens.latent_grid(
        path, config, image_size or (1024, 1024), channels=channels, patch=PATCH
    )
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    modules = [f"transformer_blocks.{k}" for k in range(int(config["num_layers"]))]
    single = int(config["num_single_layers"])
    modules += [f"single_transformer_blocks.{k}" for k in range(single)]
    stride = space.stride * PATCH
    found = tokens.block_taps(modules, width=width, stride=stride, grid=grid, item=1)
    prompt = find_prompt(
        path.parent,
        settings[SETTING],
        width=int(config["joint_attention_dim"]),
        pooled=int(config["pooled_projection_dim"]),
    )
    files, scheduler = weights.find_weights(path), scheduler_config(path)
    guidance = float(cast(float, settings["guidance"]))

    def load(dtype: torch.dtype) -> FluxNetwork:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        module = build(FluxTransformer2DModel, config, files, dtype)
        return FluxNetwork(module, space.load(dtype), Prompt(prompt), guidance)

    return Description(
        family="flux",
        image_size=size,
        taps=tuple(found),
        aliases=tokens.depth_aliases(found),
        # The network multiplies its time by 1000 itself.
        schedule=schedules.flow(time_scale=1.0, shift=float(scheduler.get("shift", 3.0))),
        weights=(*files, *space.files, prompt),
        architecture={
            "config": plain_config(config),
            "scheduler": plain_config(scheduler),
            "vae": plain_config(space.config),
            "guidance": guidance,
        },
        space=(channels, size[0] // space.stride, size[1] // space.stride),
        load=load,
        latent=True,
        licence=weights.licence(path),
    )


def _places(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return each token's (0, row, column), as the rotary embedding takes them."""
    import torch

    rows = torch.arange(grid[0], device=like.device, dtype=like.dtype)
    columns = torch.arange(grid[1], device=like.device, dtype=like.dtype)
    zero = rows.new_zeros(grid)
    return torch.stack([zero, rows[:, None].expand(grid), columns[None].expand(grid)], -1).reshape(
        -1, 3
    )

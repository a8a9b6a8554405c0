"""DiT (`DiTTransformer2DModel`): class-conditional latent transformers, recorded by depth."""

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
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SETTINGS: Mapping[str, Scalar] = {}


class DiTNetwork:
    """Run a `DiTTransformer2DModel` on latents."""

    def __init__(self, module: Any, vae: Vae) -> None:
        self.module: nn.Module = module
        self.to_space, self.to_pixels = vae.to_space, vae.to_pixels

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        return self.module(x, time, class_labels=labels, return_dict=False)[0]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `transformer` folder of a DiT pipeline."""
    config = weights.read_json(path / "config.json")
    channels, patch = int(config.get("in_channels", 4)), int(config.get("patch_size", 2))
    space, size, grid = tokens.latent_grid(path, config, image_size, channels=channels, patch=patch)
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    modules = [f"transformer_blocks.{k}" for k in range(int(config["num_layers"]))]
    stride = space.stride * patch
    found = tokens.block_taps(modules, width=width, stride=stride, grid=grid, item=0)
    files, scheduler = weights.find_weights(path), scheduler_config(path)
    classes = int(config.get("num_embeds_ada_norm") or 1000)

    def load(dtype: torch.dtype) -> DiTNetwork:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        return DiTNetwork(build(DiTTransformer2DModel, config, files, dtype), space.load(dtype))

    return Description(
        family="dit",
        image_size=size,
        taps=tuple(found),
        aliases=tokens.depth_aliases(found),
        schedule=schedules.from_config(scheduler),
        weights=(*files, *space.files),
        architecture={
            "config": plain_config(config),
            "scheduler": plain_config(scheduler),
            "vae": plain_config(space.config),
        },
        space=(channels, size[0] // space.stride, size[1] // space.stride),
        load=load,
        classes=classes,
        null_class=classes,  # the row after the classes, trained by dropping labels
        latent=True,
        licence=weights.licence(path),
    )

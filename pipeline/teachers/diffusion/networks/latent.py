"""Latent diffusion UNets: Stable Diffusion 1.x, 2.x, SDXL, with VAE and empty prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.networks.description import (
    Description,
    build,
    fit_image_size,
    plain_config,
    scheduler_config,
)
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt, find_prompt
from pipeline.teachers.diffusion.networks.unet import check_blocks, unet_taps
from pipeline.teachers.diffusion.networks.vae import Vae, describe_vae
from pipeline.teachers.recording import taps

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SETTINGS: Mapping[str, Scalar] = {SETTING: None}


class LatentNetwork:
    """Run a `UNet2DConditionModel` on latents with the empty prompt; one pass, no guidance."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt, size: tuple[int, int]) -> None:
        self.module: nn.Module = module
        self._prompt, self._size = prompt, size
        self._sdxl = module.config.addition_embed_type == "text_time"
        self.to_space, self.to_pixels = vae.to_space, vae.to_pixels

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        added = None
        if self._sdxl:  # original size, crop corner, target size: as for an uncropped image
            numbers = x.new_tensor([*self._size, 0, 0, *self._size]).expand(len(x), 6)
            added = {"text_embeds": self._prompt.pooled(x), "time_ids": numbers}
        embeds = self._prompt.embeds(x)
        return self.module(
            x, time, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False
        )[0]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `unet` folder of a Stable Diffusion pipeline."""
    config, where = weights.read_json(path / "config.json"), str(path / "config.json")
    levels = len(check_blocks(config, where))
    pooled = _pooled_width(config, where)
    space = describe_vae(path.parent, int(config.get("in_channels", 4)))
    own, multiple = config.get("sample_size"), space.stride * 2 ** (levels - 1)
    own = own * space.stride if isinstance(own, int) else own
    size, problems = fit_image_size(image_size, own, multiple)
    if problems:
        raise ConfigError(problems)
    prompt = find_prompt(
        path.parent, settings[SETTING], width=int(config["cross_attention_dim"]), pooled=pooled
    )
    files = weights.find_weights(path)
    found = unet_taps(config, stride=space.stride)
    finest = [tap for tap in found if tap.name.startswith("up.") and tap.name.count(".") == 1]
    scheduler = scheduler_config(path)

    def load(dtype: torch.dtype) -> LatentNetwork:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        module = build(UNet2DConditionModel, config, files, dtype)
        return LatentNetwork(module, space.load(dtype), Prompt(prompt), size)

    return Description(
        family="latent",
        image_size=size,
        taps=tuple(found),
        aliases=taps.stride_aliases(finest),
        schedule=schedules.from_config(scheduler),
        weights=(*files, *space.files, prompt),
        architecture={
            "config": plain_config(config),
            "scheduler": plain_config(scheduler),
            "vae": plain_config(space.config),
        },
        space=(space.channels, size[0] // space.stride, size[1] // space.stride),
        load=load,
        latent=True,
        licence=weights.licence(path),
    )


def _pooled_width(config: Mapping[str, Any], where: str) -> int | None:
    """Return the pooled prompt's width for SDXL, None for SD, and refuse what is neither."""
    kind = config.get("addition_embed_type")
    if config.get("class_embed_type") or kind not in (None, "text_time"):
        raise TeacherError(f"{where}: addition_embed_type: got {kind}, allowed none or text_time.")
    if not isinstance(config.get("cross_attention_dim", 1280), int):
        raise TeacherError(f"{where}: cross_attention_dim: one number is supported, not a list.")
    if kind is None:
        return None
    # The network takes the pooled prompt and six sinusoidal numbers side by side.
    total = int(config["projection_class_embeddings_input_dim"])
    return total - 6 * int(config["addition_time_embed_dim"])

"""Latent diffusion UNets: Stable Diffusion 1.x, 2.x, SDXL, with VAE and empty prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.networks.description import Description, Network
from pipeline.teachers.diffusion.networks.folder import read_folder
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt
from pipeline.teachers.diffusion.networks.unet import check_blocks, unet_aliases, unet_taps
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = {SETTING: None}


class LatentNetwork(Network):
    """Run a `UNet2DConditionModel` on latents with the empty prompt; one pass, no guidance."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt, size: tuple[int, int]) -> None:
        super().__init__(module, vae)
        self._prompt, self._size = prompt, size
        self._sdxl = module.config.addition_embed_type == "text_time"

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
    levels, pooled = len(check_blocks(config, where)), _pooled_width(config, where)
    folder = read_folder(
        path,
        settings,
        image_size,
        config=config,
        channels=int(config.get("in_channels", 4)),
        multiple=2 ** (levels - 1),
        prompt=(int(config["cross_attention_dim"]), pooled),
    )
    taps = unet_taps(config, stride=folder.space.stride)
    return folder.describe(
        "latent",
        functools.partial(LatentNetwork, size=folder.image_size),
        taps=taps,
        aliases=unet_aliases(taps),
        schedule=schedules.from_config(folder.scheduler),
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

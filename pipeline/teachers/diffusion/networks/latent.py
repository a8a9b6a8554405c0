"""Latent diffusion UNets: Stable Diffusion 1.x, 2.x, SDXL, with VAE and empty prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.networks import process
from pipeline.teachers.diffusion.networks.attention import (
    SDXL_REASON,
    attention_taps,
    sdxl_aliases,
)
from pipeline.teachers.diffusion.networks.description import Description, Network
from pipeline.teachers.diffusion.networks.folder import read_folder, read_network
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt
from pipeline.teachers.diffusion.networks.unet import check_blocks, unet_aliases, unet_taps
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = {SETTING: None, **process.SETTINGS}


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
    where = str(path / "config.json")
    config, files = read_network(path, "UNet2DConditionModel")
    levels, pooled = len(check_blocks(config, where)), _pooled_width(path, config, where)
    if int(config.get("in_channels", 4)) > 4:
        _refuse_inpainting(config, where)
    folder = read_folder(
        path,
        settings,
        image_size,
        config=config,
        files=files,
        channels=int(config.get("in_channels", 4)),
        multiple=2 ** (levels - 1),
        prompt=(int(config.get("cross_attention_dim", 1280)), pooled),
    )
    taps = unet_taps(config, stride=folder.space.stride)
    taps += attention_taps(config, stride=folder.space.stride, image_size=folder.image_size)
    chosen = sdxl_aliases(taps) if pooled is not None else {}
    return folder.describe(
        "latent",
        functools.partial(LatentNetwork, size=folder.image_size),
        taps=taps,
        aliases={**unet_aliases(taps), **chosen},
        notes=(SDXL_REASON,) if chosen else (),
    )


def _pooled_width(path: Path, config: Mapping[str, Any], where: str) -> int | None:
    """Return the pooled prompt's width for SDXL, None for SD, and refuse what is neither."""
    if config.get("addition_embed_type") is None:
        return None
    index = path.parent / "model_index.json"
    if index.is_file() and weights.read_json(index).get("requires_aesthetics_score"):
        raise TeacherError(
            f"{where}: the SDXL refiner, which is told an aesthetic score: not computed here. Take "
            "the base network."
        )
    # The network takes the pooled prompt and six sinusoidal numbers side by side.
    total, each = (
        config.get(name)
        for name in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    )
    if not isinstance(total, int) or not isinstance(each, int) or total <= 6 * each:
        raise TeacherError(
            f"{where}: projection_class_embeddings_input_dim: got {total} with "
            f"addition_time_embed_dim {each}, allowed more than six times as many, as for SDXL."
        )
    return total - 6 * each


def _refuse_inpainting(config: Mapping[str, Any], where: str) -> None:
    if int(config["in_channels"]) in (8, 9) and int(config.get("out_channels", 4)) == 4:
        raise TeacherError(
            f"{where}: in_channels: got {config['in_channels']}, allowed those of a latent: it is "
            "an inpainting, editing or depth network, told a second picture. Take the base network."
        )

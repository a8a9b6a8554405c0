"""Stable Diffusion 3 (`SD3Transformer2DModel`): rectified-flow transformers, recorded by depth.

Timestep t is the noise share in thousandths: `x_t = (1 - t/1000) x_0 + t/1000 eps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.networks import process, tokens
from pipeline.teachers.diffusion.networks.description import Description, Network
from pipeline.teachers.diffusion.networks.folder import read_folder, read_network
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = {SETTING: None, **process.FLOW}


class SD3Network(Network):
    """Run an `SD3Transformer2DModel` on latents with the empty prompt."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt) -> None:
        super().__init__(module, vae)
        self._prompt = prompt

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
    config, files = read_network(path, "SD3Transformer2DModel")
    patch, channels = int(config.get("patch_size", 2)), int(config.get("in_channels", 16))
    folder = read_folder(
        path,
        settings,
        image_size,
        config=config,
        files=files,
        channels=channels,
        multiple=patch,
        prompt=(
            int(config.get("joint_attention_dim", 4096)),
            int(config.get("pooled_projection_dim", 2048)),
        ),
        allowed=schedulers.FLOWS,
    )
    stride = folder.space.stride * patch
    taps = tokens.block_taps(config, folder.image_size, stride=stride, item=1)
    return folder.describe(
        "sd3",
        SD3Network,
        taps=taps,
        aliases=tokens.depth_aliases(taps),
        notes=(tokens.REASON,),
    )

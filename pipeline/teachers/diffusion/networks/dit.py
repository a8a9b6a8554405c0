"""DiT (`DiTTransformer2DModel`): class-conditional latent transformers, recorded by depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.networks import process, tokens
from pipeline.teachers.diffusion.networks.description import Description, Network
from pipeline.teachers.diffusion.networks.folder import read_folder, read_network

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = process.SETTINGS


class DiTNetwork(Network):
    """Run a `DiTTransformer2DModel` on latents."""

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        return self.module(x, time, class_labels=labels, return_dict=False)[0]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `transformer` folder of a DiT pipeline."""
    config, files = read_network(path, "DiTTransformer2DModel")
    patch, channels = int(config.get("patch_size", 2)), int(config.get("in_channels", 4))
    folder = read_folder(
        path, settings, image_size, config=config, files=files, channels=channels, multiple=patch
    )
    stride = folder.space.stride * patch
    taps = tokens.block_taps(config, folder.image_size, stride=stride, item=0)
    classes = int(config.get("num_embeds_ada_norm") or 1000)
    return folder.describe(
        "dit",
        DiTNetwork,
        taps=taps,
        aliases=tokens.depth_aliases(taps),
        notes=(tokens.REASON,),
        classes=classes,
        null_class=classes,  # the row after the classes, trained by dropping labels
    )

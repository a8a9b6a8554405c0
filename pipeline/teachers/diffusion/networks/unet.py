"""Pixel-space UNets of diffusers (`UNet2DModel`): DDPM and everything saved in that layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.networks import process
from pipeline.teachers.diffusion.networks.accepted import check_network
from pipeline.teachers.diffusion.networks.description import (
    Description,
    Network,
    build,
    fit_image_size,
    plain_config,
)
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    from torch import Tensor

CLEAN = "clean"
"""Member of a config.json: the network was trained to read clean images (`dreamshard clean`)."""
SETTINGS: Mapping[str, Scalar] = process.SETTINGS


class UNetNetwork(Network):
    """Run a `UNet2DModel` on pixels in [-1, 1]."""

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        if labels is None and getattr(self.module, "class_embedding", None) is not None:
            embedding, self.module.class_embedding = self.module.class_embedding, None
            try:  # no class: leave its embedding out of the sum
                return self.module(x, time, return_dict=False)[0]
            finally:
                self.module.class_embedding = embedding
        return self.module(x, time, class_labels=labels, return_dict=False)[0]


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe a `UNet2DModel` folder from its config.json."""
    config = weights.read_json(path / "config.json")
    where = str(path / "config.json")
    files = weights.find_weights(path)
    name = str(config["_class_name"])
    check_network(config, name, where=where)
    channels = check_blocks(config, where)
    size, problems = fit_image_size(image_size, config.get("sample_size"), 2 ** (len(channels) - 1))
    if problems:
        raise ConfigError(problems)
    listed, noise = unet_taps(config), process.find_process(path, settings, guess=True)
    built = {key: value for key, value in config.items() if key != CLEAN}  # diffusers has no such
    return Description(
        family="unet",
        clean=bool(config.get(CLEAN)),
        image_size=size,
        taps=tuple(listed),
        aliases=unet_aliases(listed),
        schedule=noise.schedule,
        weights=files,
        architecture={"config": plain_config(config), "scheduler": plain_config(noise.config)},
        space=(3, *size),
        load=lambda dtype: UNetNetwork(build(name, built, files, dtype)),
        classes=int(config.get("num_class_embeds") or 0),
        flags=noise.flags,
    )


def unet_taps(config: Mapping[str, Any], *, stride: int = 1) -> list[Tap]:
    """List the taps of a UNet config in the order they are computed.

    Args:
        config: of a `UNet2DModel` or `UNet2DConditionModel`.
        stride: image pixels per cell of the network's input: 1, or the VAE's stride.

    `down.i`, `mid` and `up.i` are the last outputs of a block at the block's own resolution, before
    its resampler; `down.i.j` and `up.i.j` its single layers; `down.i.down` and `up.i.up` what comes
    out of the resampler; `in` the first convolution.
    """
    channels = [int(value) for value in config["block_out_channels"]]
    last = len(channels) - 1
    depth = config.get("layers_per_block", 2)
    layers = [int(d) for d in depth] if isinstance(depth, list) else [int(depth)] * len(channels)
    listed = [Tap("in", "conv_in", channels[0], stride)]
    for i, kind in enumerate(config["down_block_types"]):
        block, here = f"down_blocks.{i}", stride * 2**i
        listed += _block_taps(f"down.{i}", block, kind, layers[i], channels[i], here)
        if i < last:
            module = f"{block}.resnet_down" if "Skip" in kind else f"{block}.downsamplers.0"
            listed.append(Tap(f"down.{i}.down", module, channels[i], here * 2))
    if config.get("mid_block_type", "UNetMidBlock2D") is not None:
        listed.append(Tap("mid", "mid_block", channels[-1], stride * 2**last))
    for i, kind in enumerate(config["up_block_types"]):
        block, width, here = f"up_blocks.{i}", channels[last - i], stride * 2 ** (last - i)
        listed += _block_taps(f"up.{i}", block, kind, layers[last - i] + 1, width, here)
        if i < last:
            module = f"{block}.resnet_up" if "Skip" in kind else f"{block}.upsamplers.0"
            listed.append(Tap(f"up.{i}.up", module, width, here // 2))
    return listed


def unet_aliases(listed: Sequence[Tap]) -> dict[str, str]:
    """Return the aliases by stride: the decoder's last outputs at each resolution."""
    decoder = [tap for tap in listed if tap.name.startswith("up.") and tap.name.count(".") == 1]
    return taps.stride_aliases(decoder)


def _block_taps(
    name: str, block: str, kind: str, layers: int, channels: int, stride: int
) -> list[Tap]:
    if kind == "AttnSkipUpBlock2D":  # one attention, after the last layer
        modules = [f"{block}.resnets.{j}" for j in range(layers - 1)] + [f"{block}.attentions.0"]
    elif "Attn" in kind:
        modules = [f"{block}.attentions.{j}" for j in range(layers)]
    else:
        modules = [f"{block}.resnets.{j}" for j in range(layers)]
    listed = [Tap(f"{name}.{j}", module, channels, stride) for j, module in enumerate(modules)]
    return [*listed, Tap(name, modules[-1], channels, stride)]


def check_blocks(config: Mapping[str, Any], where: str) -> Sequence[int]:
    """Check the fields that taps are derived from."""
    lists = [
        config.get(key) for key in ("block_out_channels", "down_block_types", "up_block_types")
    ]
    if any(not isinstance(value, list) or not value for value in lists):
        raise TeacherError(f"{where}: needs block_out_channels, down_block_types, up_block_types.")
    channels, down, up = lists
    assert isinstance(channels, list) and isinstance(down, list) and isinstance(up, list)
    if not len(channels) == len(down) == len(up):
        raise TeacherError(
            f"{where}: block_out_channels, down_block_types and up_block_types have "
            f"{len(channels)}, {len(down)} and {len(up)} entries, allowed as many each."
        )
    return channels

"""Flux (`FluxTransformer2DModel`): rectified-flow transformers on packed latents, by depth.

Timestep t is the noise share in thousandths, as for SD3. Blocks are numbered through: the
two-stream ones first, then the single-stream ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.networks import process, tokens
from pipeline.teachers.diffusion.networks.description import Description, Network
from pipeline.teachers.diffusion.networks.folder import read_folder, read_network
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt
from pipeline.teachers.diffusion.networks.vae import Vae

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS: Mapping[str, Scalar] = {SETTING: None, "guidance": 1.0, **process.FLOW}
"""guidance: what a guidance-distilled network (-dev) is told; 1 = none."""
PATCH = 2


class FluxNetwork(Network):
    """Run a `FluxTransformer2DModel` on latents, packing 2x2 cells into a token."""

    def __init__(self, module: Any, vae: Vae, prompt: Prompt, guidance: float) -> None:
        super().__init__(module, vae)
        self._prompt, self._guidance = prompt, guidance
        self._guided = bool(module.config.guidance_embeds)

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass; see `description.Network`."""
        rows, channels, height, width = x.shape
        grid = (height // PATCH, width // PATCH)
        cells = x.reshape(rows, channels, grid[0], PATCH, grid[1], PATCH)
        packed = cells.permute(0, 2, 4, 1, 3, 5).reshape(rows, grid[0] * grid[1], channels * 4)
        embeds = self._prompt.embeds(x)
        guidance = x.new_full((rows,), self._guidance) if self._guided else None
        output = self.module(
            hidden_states=packed,
            encoder_hidden_states=embeds,
            pooled_projections=self._prompt.pooled(x),
            timestep=time,
            img_ids=_places(grid, x),
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        cells = output.reshape(rows, *grid, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(rows, channels, height, width)


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe the `transformer` folder of a Flux pipeline."""
    config, files = read_network(path, "FluxTransformer2DModel")
    folder = read_folder(
        path,
        settings,
        image_size or (1024, 1024),
        config=config,
        files=files,
        channels=int(config.get("in_channels", 64)) // PATCH**2,
        multiple=PATCH,
        prompt=(
            int(config.get("joint_attention_dim", 4096)),
            int(config.get("pooled_projection_dim", 768)),
        ),
        allowed=schedulers.FLOWS,
        time_scale=1.0,  # the network multiplies its time by 1000 itself
    )
    stride, single = folder.space.stride * PATCH, int(config.get("num_single_layers", 38))
    taps = tokens.block_taps(config, folder.image_size, stride=stride, item=1, single=single)
    guidance = float(cast(float, settings["guidance"]))
    return folder.describe(
        "flux",
        functools.partial(FluxNetwork, guidance=guidance),
        taps=taps,
        aliases=tokens.depth_aliases(taps),
        notes=(tokens.REASON,),
        facts={"guidance": guidance},
    )


def _places(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return each token's (0, row, column), as the rotary embedding takes them."""
    import torch

    kind = {"device": like.device, "dtype": like.dtype}
    rows, columns = (torch.arange(cells, **kind) for cells in grid)
    return torch.cartesian_prod(torch.zeros(1, **kind), rows, columns)

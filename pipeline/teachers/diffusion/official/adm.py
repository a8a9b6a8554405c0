"""guided-diffusion (ADM) checkpoints: `.pt` files of the official code, run as a `UNet2DModel`.

Flags have the official code's names. Those the weights tell may be left out (given, they are
checked); those they cannot tell are asked for by name, except for the sizes of the released
networks, whose published flags are known. `noise_schedule` and `use_new_attention_order` are asked
for, too, unless further flags of the training command are given: what it leaves out, and
`predict_xstart` and `diffusion_steps` always, take the official defaults; what was taken is said
before a run and recorded with the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreamshard.errors import ConfigError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.networks.description import Description, fit_image_size
from pipeline.teachers.diffusion.networks.unet import UNetNetwork
from pipeline.teachers.diffusion.official.adm_attention import OfficialAttention
from pipeline.teachers.diffusion.official.adm_flags import (
    SETTINGS,
    Flags,
    complete,
    heads_of,
    noise_schedule,
)
from pipeline.teachers.diffusion.official.adm_layout import AdmLayout, read_layout
from pipeline.teachers.diffusion.official.adm_names import block_taps, default_taps, rename
from pipeline.teachers.recording import taps

if TYPE_CHECKING:
    import torch


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> Description:
    """Describe a checkpoint from its flags and the shapes in it."""
    layout = read_layout(weights.shapes(path), where=str(path))
    settings = dict(settings)
    if settings["image_size"] is None and image_size is not None:
        settings["image_size"] = max(image_size)
    flags, sources = complete(settings, layout)
    size = cast(int, flags["image_size"])
    multiple = 2 ** (len(layout.widths) - 1)
    shape, problems = fit_image_size(image_size, size, multiple)
    if problems:
        raise ConfigError(problems)
    told = {name: flags[name] for name in SETTINGS if flags.get(name) is not None}
    idle = ("dropout", "use_fp16", "use_checkpoint", "use_kl", "timestep_respacing")
    return Description(
        family="adm",
        image_size=shape,
        taps=tuple(block_taps(layout)),
        aliases=taps.stride_aliases(default_taps(layout)),
        schedule=noise_schedule(flags),
        weights=(path,),
        architecture={
            "unet": layout.unet_config(size),
            "flags": {name: value for name, value in told.items() if name not in idle},
        },
        space=(3, *shape),
        load=lambda dtype: UNetNetwork(build(path, layout, flags, dtype)),
        classes=layout.classes,
        exact=True,
        notes=_notes(layout, flags),
        flags=sources,
    )


def build(path: Path, layout: AdmLayout, flags: Flags, dtype: torch.dtype) -> Any:
    """Build the UNet2DModel of a checkpoint and load its weights.

    Raises: TeacherError if the file is damaged or holds other weights than its shapes promised.
    """
    import torch
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
    from diffusers.models.unets.unet_2d import UNet2DModel

    width = layout.model_channels

    def make() -> Any:
        made: Any = UNet2DModel.from_config(layout.unet_config(cast(int, flags["image_size"])))
        if layout.widths[0] != width:
            # diffusers ties the embedding's width to the first level's; the 512-pixel network,
            # whose first level is half as wide as its base, needs them apart.
            made.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            made.time_embedding = TimestepEmbedding(width, 4 * width)
        return made

    module = weights.unbuilt(make, where=str(path))

    def heads(channels: int, up: bool) -> int:
        return heads_of(channels, flags, upsample=up)

    new_order = bool(flags["use_new_attention_order"])
    state = rename(weights.read([path]), layout, heads=heads, new_order=new_order)
    _set_attention(module, flags, official=dtype == torch.float32)
    return weights.load_into(module, state, where=str(path), dtype=dtype)


def _set_attention(module: Any, flags: Flags, *, official: bool) -> None:
    """Give every attention its own number of heads, and float32 the official arithmetic."""
    from diffusers.models.attention_processor import Attention

    processor = OfficialAttention(new_order=bool(flags["use_new_attention_order"]))
    for name, part in module.named_modules():
        if isinstance(part, Attention):
            channels = part.to_q.in_features
            part.heads = heads_of(channels, flags, upsample=name.startswith("up_blocks"))
            part.scale = (channels // part.heads) ** -0.5
            if official:
                part.set_processor(processor)  # type: ignore[arg-type]


def _notes(layout: AdmLayout, flags: Flags) -> tuple[str, ...]:
    heads = ", ".join(f"{heads_of(c, flags)} at {c} channels" for c in layout.head_widths)
    order = "new" if flags["use_new_attention_order"] else "legacy"
    return (f"attention heads: {heads}; {order} qkv order; {flags['noise_schedule']} schedule",)

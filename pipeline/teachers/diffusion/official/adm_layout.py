"""Read the architecture out of a guided-diffusion (ADM) state dict.

What the shapes tell: widths, depth, where attention is, learned variance, classes, scale-shift,
resampling. What they cannot: image size, number of attention heads, the order inside `qkv`, the
noise schedule; those are flags (see `adm.py`). Source: Dhariwal and Nichol 2021, official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamshard.errors import TeacherError
from pipeline.teachers import weights

Shapes = Mapping[str, tuple[int, ...]]
NORM_GROUPS = 32


@dataclass(frozen=True)
class AdmLayout:
    """The architecture of an ADM network, as far as its weights tell it.

    Args:
        model_channels: base width (`num_channels`).
        widths: channels per level, finest first.
        num_res_blocks: residual blocks per level on the way down.
        attention: whether each level has attention, finest first.
        learn_sigma: the network also predicts a variance.
        classes: number of labels, 0 for none.
        scale_shift: timestep scales and shifts (`use_scale_shift_norm`).
        resblock_updown: resolution changes inside residual blocks, else by convolutions.
    """

    model_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]
    learn_sigma: bool
    classes: int
    scale_shift: bool
    resblock_updown: bool

    @property
    def channel_mult(self) -> tuple[float, ...]:
        """Return the widths in units of the base width, as the official flag has them."""
        return tuple(width / self.model_channels for width in self.widths)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Return the channels of every kind of attention there is."""
        widths = {w for w, attends in zip(self.widths, self.attention, strict=True) if attends}
        return tuple(sorted(widths | {self.widths[-1]}))

    def unet_config(self, sample_size: int) -> dict[str, Any]:
        """Return the UNet2DModel config of the same network (but for heads and a half width)."""
        plain = ("DownBlock2D", "UpBlock2D")
        if self.resblock_updown:
            plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        resampling = "resnet" if self.resblock_updown else "conv"
        return {
            "_class_name": "UNet2DModel",
            "sample_size": sample_size,
            "in_channels": 3,
            "out_channels": 6 if self.learn_sigma else 3,
            "block_out_channels": list(self.widths),
            "layers_per_block": self.num_res_blocks,
            "down_block_types": [("AttnDownBlock2D" if a else plain[0]) for a in self.attention],
            "up_block_types": [("AttnUpBlock2D" if a else plain[1]) for a in self.attention[::-1]],
            "downsample_type": resampling,
            "upsample_type": resampling,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "time_embedding_dim": 4 * self.model_channels,
            "attention_head_dim": 1,  # heads are set on the modules: the config cannot say them
            "norm_num_groups": NORM_GROUPS,
            "attn_norm_num_groups": NORM_GROUPS,
            "norm_eps": 1e-5,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "num_class_embeds": self.classes or None,
        }


def read_layout(shapes: Shapes, *, where: str) -> AdmLayout:
    """Read the architecture from tensor shapes.

    Raises: TeacherError if these are not an ADM network's.
    """
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise TeacherError(
            f"{where}: a guided-diffusion classifier, which has no decoder to record. Point "
            "teacher.path at the diffusion network that it guides (such as 256x256_diffusion.pt)."
        )
    if shapes.get("input_blocks.0.0.weight", (0, 3))[1:2] == (6,):
        raise TeacherError(
            f"{where}: a guided-diffusion upsampler, which is told a second picture. Point "
            "teacher.path at a network that makes images from noise."
        )
    try:
        return _read_layout(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(
            f"{where}: not a guided-diffusion network ({type(error).__name__}: {error}; its keys "
            f"begin {', '.join(sorted(shapes)[:3])}). Other networks: a diffusers folder."
        ) from error


def _read_layout(shapes: Shapes) -> AdmLayout:
    model_channels = shapes["time_embed.0.weight"][1]
    inputs, outputs = (
        weights.count_numbered(shapes, rf"{name}\.(\d+)\.")
        for name in ("input_blocks", "output_blocks")
    )
    # The last output block of every level but the finest holds the upsampling: that gives levels.
    ups = [k for k in range(outputs) if _upsampler(shapes, k)]
    levels = len(ups) + 1
    per_level, rest = divmod(outputs, levels)
    depth = per_level - 1
    if rest or inputs != 1 + levels * depth + levels - 1:
        raise ValueError(f"{inputs} input and {outputs} output blocks do not make {levels} levels")
    widths, attention = [], []
    for level in range(levels):
        first = 1 + level * (depth + 1)
        widths.append(shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0])
        attention.append(f"input_blocks.{first}.1.qkv.weight" in shapes)
    embedded = shapes["middle_block.0.emb_layers.1.weight"][0]
    out_channels, in_channels = shapes["out.2.weight"][0], shapes["input_blocks.0.0.weight"][1]
    if in_channels != 3 or out_channels not in (3, 6):
        raise ValueError(f"{in_channels} input and {out_channels} output channels, not RGB")
    return AdmLayout(
        model_channels=model_channels,
        widths=tuple(widths),
        num_res_blocks=depth,
        attention=tuple(attention),
        learn_sigma=out_channels == 6,
        classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
        scale_shift=embedded == 2 * widths[-1],
        resblock_updown=not ups
        or f"output_blocks.{ups[0]}.{_upsampler(shapes, ups[0])}.in_layers.0.weight" in shapes,
    )


def _upsampler(shapes: Shapes, block: int) -> int:
    """Return the child of an output block that upsamples (1, or 2 after attention); 0 for none."""
    for child in (1, 2):
        stem = f"output_blocks.{block}.{child}"
        if f"{stem}.in_layers.0.weight" in shapes or f"{stem}.conv.weight" in shapes:
            return child
    return 0

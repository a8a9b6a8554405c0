"""BigGAN's discriminator as a teacher of real images: `D*.pth` of the official code.

    teacher:
      kind: biggan
      part: discriminator
      path: checkpoints/biggan-128/D.pth   # or the folder
      levels: [s4, s8, s16, s32]

Taps are the outputs of the blocks by their official numbers, after attention where there is one
(`d.blocks.1`; before it, `d.blocks.1.0`), before the ReLU that the next one begins with; the last
map rectified and added up (`d.pool`); the logit of being real without a class (`d.linear`), and
with the projection of each class (`d.logits`, one number per class).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.gan.biggan import flags as biggan_flags
from pipeline.teachers.gan.biggan.discriminator_layout import DiscriminatorLayout, read_layout
from pipeline.teachers.gan.sizes import settle_size
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.looking import LookingTeacher
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork

if TYPE_CHECKING:
    import torch
    from torch import nn


class BigGANDiscriminatorTeacher(LookingTeacher):
    """Run a BigGAN discriminator; see the module's text."""

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return the official flags and what describes a checkpoint; see `NetworkTeacher.find`."""
        return biggan_flags.DISCRIMINATOR, functools.partial(describe, path)


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None = None
) -> NetworkDescription:
    """Describe the discriminator in a checkpoint from small files and shapes.

    Raises:
        ConfigError: settings that contradict it, or images it cannot halve often enough.
        TeacherError: unusable files.
    """
    file = find_file(path)
    layout = read_layout(weights.shapes(file), where=str(file))
    eps, sources = biggan_flags.find_discriminator_flags(file, settings)
    size = settle_size(image_size, own=layout.image_size, reduction=layout.reduction)
    listed = tuple(block_taps(layout))
    return NetworkDescription(
        family="biggan.discriminator",
        image_size=size,
        taps=listed,
        aliases=taps.stride_aliases(listed),
        weights=(file,),
        architecture={**dataclasses.asdict(layout), "SN_eps": eps},
        load=lambda dtype: PlainNetwork(load(file, layout, eps, dtype)),
        flags=sources,
    )


def load(file: Path, layout: DiscriminatorLayout, eps: float, dtype: torch.dtype) -> nn.Module:
    """Read the network and make it ready; what is pooled stays in float32.

    Raises: TeacherError for weights that are damaged or of another shape.
    """
    import torch

    from pipeline.teachers.gan.biggan.discriminator_network import BigGANDiscriminator
    from pipeline.teachers.gan.biggan.network import Attention, divided_weights

    module = weights.unbuilt(lambda: BigGANDiscriminator(layout), where=str(file))
    state = divided_weights(weights.read((file,)), eps=eps, where=str(file))
    if not layout.classes:  # IC-GAN's, which is told of instances, too
        state = {n: v for n, v in state.items() if not n.startswith(("embed.", "linear_feat."))}
    weights.load_into(module, state, where=str(file))
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d | Attention):
            part.to(dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def find_file(path: Path) -> Path:
    """Return the checkpoint file of a path; a folder holds one `D*.pth`.

    Raises: ConfigError if there is none, or more than one.
    """
    of = "D.pth of BigGAN-PyTorch"
    return weights.one_file(path, named="D*.pth", of=of, look=_files_in)


def _files_in(folder: Path) -> list[Path]:
    suffixes = (*weights.SAFE, *weights.PICKLED)
    named = [p for p in folder.glob("D*") if biggan_flags.NAME.match(p.name)]
    return sorted(p for p in named if p.suffix in suffixes and not p.name.startswith("D_optim"))


def block_taps(layout: DiscriminatorLayout) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    stride, listed = 1, []
    for number, (stage, attends) in enumerate(zip(layout.stages, layout.attention, strict=True)):
        name = f"blocks.{number}"
        for depth, block in enumerate(stage):
            stride *= 2 if block.downsample else 1
            last = depth == len(stage) - 1 and not attends
            own = name if last else f"{name}.{depth}"
            listed.append(Tap(f"d.{own}", f"{name}.{depth}", block.outputs, stride))
        if attends:
            place = f"{name}.{len(stage)}"
            listed.append(Tap(f"d.{name}", place, stage[-1].outputs, stride))
    listed.append(taps.vector("d.pool", "pool", layout.width))
    listed.append(taps.vector("d.linear", "linear", 1))
    if layout.classes:
        listed.append(taps.vector("d.logits", "logits", layout.classes))
    return listed

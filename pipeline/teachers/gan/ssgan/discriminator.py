"""SS-GAN's and SNGAN's discriminators as teachers of real images.

    teacher:
      kind: ssgan
      part: discriminator
      path: checkpoints/ssgan-64/netD_100000_steps.pth   # or the folder, or variables.npz
      levels: [s2, s4, s8, s16]

Taps are the outputs of the blocks by the names they have in the file (`d.block1` ..., `d.B0` ...),
before the ReLU that the next one begins with; the last map rectified and added up or averaged
(`d.pool`, `settings.pool` by name); the logit of being real (`d.logit`) and SS-GAN's logits of the
four rotations (`d.rotation`). Every image is looked at alone: there is no normalisation by batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamshard.errors import ConfigError
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.gan.sizes import settle_size
from pipeline.teachers.gan.ssgan import compare_gan, files, mimicry
from pipeline.teachers.gan.ssgan.family import load, word_problems
from pipeline.teachers.gan.ssgan.layout import POOLING, DiscriminatorLayout
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.looking import LookingTeacher
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork

SETTINGS: dict[str, Scalar] = {"pool": ""}
"""What may be said of a discriminator; nothing: as its code does."""


class SSGANDiscriminatorTeacher(LookingTeacher):
    """Run an SS-GAN or SNGAN discriminator; see the module's text."""

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return the settings and what describes a checkpoint; see `NetworkTeacher.find`."""
        return SETTINGS, functools.partial(describe, path)


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None = None
) -> NetworkDescription:
    """Describe the discriminator in a file from its shapes.

    Raises:
        ConfigError: settings that contradict it, or images it cannot halve often enough.
        TeacherError: unusable files.
    """
    if problems := word_problems(settings, {"pool": POOLING}):
        raise ConfigError(problems)
    network = files.open_network(path, "discriminator")
    pool = str(settings["pool"])
    layout = _read_layout(network, pool)
    size = settle_size(image_size, own=layout.image_size, reduction=layout.reduction)
    listed = tuple(block_taps(layout))
    return NetworkDescription(
        family="ssgan.discriminator",
        image_size=size,
        taps=listed,
        aliases=taps.stride_aliases(listed),
        weights=(network.file,),
        architecture=dataclasses.asdict(layout),
        load=lambda dtype: PlainNetwork(load(network, layout, dtype)),
        flags=_flags(network, layout, pool),
    )


def _flags(network: files.Network, layout: DiscriminatorLayout, pool: str) -> tuple[Flag, ...]:
    if pool:
        return (Flag(name="pool", value=pool, source="user"),)
    if network.tensorflow or mimicry.normalised(network.shapes):
        return ()
    whose = "WGAN-GP's, as its weights have no spectral norms"
    return (Flag(name="pool", value=layout.pool, source="default", whose=whose),)


def _read_layout(network: files.Network, pool: str) -> DiscriminatorLayout:
    try:
        if not network.tensorflow:
            return mimicry.read_discriminator(network.shapes, pool=pool)
        own = None
        if network.others:  # the generator in the same file tells which images it is used to
            where = str(network.file)
            own = compare_gan.read_generator(network.others, eps=1e-5, where=where).image_size
        return compare_gan.read_discriminator(network.shapes, pool=pool, image_size=own)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise files.unknown(network.file, "discriminator", error, network.shapes) from error


def block_taps(layout: DiscriminatorLayout) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    stride, listed = 1, []
    for block in layout.blocks:
        stride *= 2 if block.resample else 1
        listed.append(Tap(f"d.{block.name}", f"blocks.{block.name}", block.outputs, stride))
    width = layout.blocks[-1].outputs
    listed.append(taps.vector("d.pool", "pool", width))
    if layout.rotations:
        listed.append(taps.vector("d.rotation", "rotation", layout.rotations))
    listed.append(taps.vector("d.logit", "logit", 1))
    return listed

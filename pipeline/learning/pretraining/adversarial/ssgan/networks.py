"""SS-GAN's published networks by name and size, and those of its conditional baseline, to train.

Source: Chen et al. 2019, tables 6 and 7; Miyato and Koyama 2018; torch-mimicry 0.1; compare_gan 3.0
(`resnet_cifar.py`, `resnet5.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.pretraining.adversarial.ssgan.config import ROTATING, SIZES, SSGANConfig
from pipeline.teachers.gan.biggan.discriminator_layout import DBlock
from pipeline.teachers.gan.biggan.discriminator_layout import (
    DiscriminatorLayout as ProjectionLayout,
)
from pipeline.teachers.gan.biggan.layout import BigGANLayout
from pipeline.teachers.gan.biggan.layout import Block as ConditionalBlock
from pipeline.teachers.gan.ssgan.layout import Block, DiscriminatorLayout, GeneratorLayout

BOTTOM = 4
"""Cells per side of the generator's first map."""
EPS = 1e-5
"""Of the generator's normalisation, in both codes' published configurations."""
CIFAR_SIDE, CIFAR = 32, (256, 128)
"""Pixels, and the published widths of generator and discriminator at them; else 64, multiplied."""
WIDTH = 64
UP = {
    ("mimicry", 64): (16, 8, 4, 2, 1),
    ("mimicry", 128): (16, 16, 8, 4, 2, 1),
    ("compare_gan", 128): (8, 8, 8, 4, 2, 1),
}
"""Generator's widths over the last block's: its first map's, then each block's."""
DOWN = {
    ("mimicry", 64): (1, 2, 4, 8, 16),
    ("mimicry", 128): (1, 2, 4, 8, 16, 16),
    ("compare_gan", 128): (1, 2, 4, 4, 8, 8),
}
"""Discriminator's widths over its first block's."""
HALVINGS = {("mimicry", 128): 5, ("mimicry", 32): 2, ("compare_gan", 32): 2}
"""Blocks that halve, where not all do."""


def check_size(config: SSGANConfig, side: int) -> None:
    """Raise ConfigError where no network is published for images of this side (pixels)."""
    sizes = SIZES[config.variant]
    if side not in sizes:
        allowed = f"{', '.join(map(str, sizes))}: the published networks of {config.variant}"
        raise ConfigError(Problem("image.size", str(side), allowed))


def generator_layout(config: SSGANConfig, side: int) -> GeneratorLayout:
    """Describe the generator for images of a side (pixels)."""
    tensorflow = config.variant == "compare_gan"
    widths = _up_widths(config, side)
    first = 1 if tensorflow else 2
    return GeneratorLayout(
        blocks=tuple(
            Block(
                name=f"{'B' if tensorflow else 'block'}{first + number}",
                inputs=inputs,
                hidden=outputs,
                outputs=outputs,
                resample=True,
                shortcut=3 if tensorflow else 1,
            )
            for number, (inputs, outputs) in enumerate(pairwise(widths))
        ),
        latent=config.latent,
        bottom=BOTTOM,
        upsample=config.upsample or ("zero_insertion" if tensorflow else "bilinear"),
        modulation=config.modulation or None,
        eps=EPS,
        unsigned=tensorflow,
    )


def discriminator_layout(config: SSGANConfig, side: int) -> DiscriminatorLayout:
    """Describe the discriminator for images of a side (pixels)."""
    tensorflow = config.variant == "compare_gan"
    widths = _down_widths(config, side)
    halvings = HALVINGS.get((config.variant, side), len(widths))
    # compare_gan counts its blocks from 0 in resnet5 and from 1 in resnet_cifar.
    first = 0 if tensorflow and side != CIFAR_SIDE else 1
    blocks = []
    for number, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
        halves = number < halvings
        projected = halves or inputs != outputs
        blocks.append(
            Block(
                name=f"{'B' if tensorflow else 'block'}{first + number}",
                inputs=inputs,
                hidden=inputs if number and not tensorflow else outputs,
                outputs=outputs,
                resample=halves,
                shortcut=3 if tensorflow else int(projected),
            )
        )
    plain = tensorflow or config.regularisation != "spectral_norm"
    return DiscriminatorLayout(
        blocks=tuple(blocks),
        image_size=side,
        pool=config.pool or ("mean" if plain else "sum"),
        rotations=4 if config.method in ROTATING else 0,
        rectified=not tensorflow,
        unsigned=tensorflow,
    )


def conditional_layouts(
    config: SSGANConfig, side: int, classes: int
) -> tuple[BigGANLayout, ProjectionLayout]:
    """Describe the conditional baseline: tables of gains per class, and a projection."""
    up, down = _up_widths(config, side), _down_widths(config, side)
    generator = BigGANLayout(
        blocks=tuple(
            ConditionalBlock(inputs, outputs, outputs, upsample=True, attention=False)
            for inputs, outputs in pairwise(up)
        ),
        deep=False,
        bottom=BOTTOM,
        latent=config.latent,
        chunk=0,
        classes=classes,
        shared=0,
        features=0,
        shared_features=0,
    )
    halvings = 2 if side == CIFAR_SIDE else len(down) - 1
    stages = []
    for number, (inputs, outputs) in enumerate(zip((3, *down), down, strict=False)):
        halves = number < halvings
        shortcut = outputs if halves or inputs != outputs else 0
        stages.append((DBlock(inputs, outputs, outputs, downsample=halves, shortcut=shortcut),))
    discriminator = ProjectionLayout(
        stages=tuple(stages),
        attention=(False,) * len(stages),
        deep=False,
        classes=classes,
        image_size=side,
    )
    return generator, discriminator


def _up_widths(config: SSGANConfig, side: int) -> Sequence[int]:
    if side == CIFAR_SIDE:
        return (config.channels or CIFAR[0],) * 4
    return tuple(each * (config.channels or WIDTH) for each in UP[config.variant, side])


def _down_widths(config: SSGANConfig, side: int) -> Sequence[int]:
    if side == CIFAR_SIDE:
        return (config.discriminator_channels or CIFAR[1],) * 4
    width = config.discriminator_channels or WIDTH
    return tuple(each * width for each in DOWN[config.variant, side])

"""Read the architecture out of a BigGAN generator's state dict.

One reader serves BigGAN and BigGAN-deep (Brock et al. 2019), BigBiGAN's generator in the same
format, and IC-GAN (Casanova et al. 2021). The shapes tell everything but the two epsilons and
BigBiGAN's habit of feeding class 0 alone. Source: BigGAN-PyTorch and ic_gan, official code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dreamshard.errors import TeacherError

Shapes = Mapping[str, tuple[int, ...]]
DEEP_DEPTH = 2  # blocks per stage: the official code builds no other depth that fits together


@dataclass(frozen=True)
class Block:
    """One residual block: channels in and out, whether it doubles the size, attention after it."""

    inputs: int
    outputs: int
    hidden: int
    upsample: bool
    attention: bool


@dataclass(frozen=True)
class BigGANLayout:
    """The architecture of a generator.

    Args:
        blocks: in the order they run.
        deep: BigGAN-deep's bottleneck blocks, whose whole condition is [class, z].
        bottom: height and width of the first map (cells).
        latent: numbers of z.
        chunk: numbers of z that each block gets (hierarchical z); 0 where only the first map does.
        classes: number of classes it is conditioned on, 0 for none.
        shared: width of the class embedding that all blocks share; 0: each has tables of its own.
        features: width of the instance features it is conditioned on (IC-GAN), 0 for none.
        shared_features: width they are brought to.
    """

    blocks: tuple[Block, ...]
    deep: bool
    bottom: int
    latent: int
    chunk: int
    classes: int
    shared: int
    features: int
    shared_features: int

    @property
    def image_size(self) -> int:
        """Return the height and width of the images in pixels."""
        return self.bottom * 2 ** sum(block.upsample for block in self.blocks)

    @property
    def embedded(self) -> int:
        """Return the width of class and instance embeddings side by side."""
        return self.shared + self.shared_features

    @property
    def condition(self) -> int:
        """Return the numbers that a block's normalisation is conditioned on; 0: a class number."""
        return self.embedded + (self.latent if self.deep and self.chunk else self.chunk)


def read_layout(shapes: Shapes, *, where: str) -> BigGANLayout:
    """Read the architecture from tensor shapes.

    Raises: TeacherError if these are not a BigGAN generator's.
    """
    try:
        return _read(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(
            f"{where}: not a BigGAN generator of BigGAN-PyTorch ({type(error).__name__}: {error}; "
            f"its keys begin {', '.join(sorted(shapes)[:3])}). Point teacher.path at G_ema*.pth."
        ) from error


def _read(shapes: Shapes) -> BigGANLayout:
    deep = "blocks.0.0.conv4.weight" in shapes
    numbers = [int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.0\.conv1\.w", key))]
    blocks = tuple(_block(shapes, number, deep=deep) for number in sorted(numbers))
    if not blocks or sorted(numbers) != list(range(len(blocks))):
        raise ValueError(f"blocks {sorted(numbers)}, not 0, 1, 2 ...")
    if deep and len(blocks) % DEEP_DEPTH:
        raise ValueError(f"{len(blocks)} blocks, not stages of {DEEP_DEPTH}")
    flat, into = shapes["linear.weight"]
    area, rest = divmod(flat, blocks[0].inputs)
    bottom = round(area**0.5)
    if rest or bottom * bottom != area:
        raise ValueError(f"a first map of {flat} values for {blocks[0].inputs} channels")
    chunk, uses_class, uses_features = _condition(shapes, into, deep=deep)
    shared = shapes["shared.weight"][1] if uses_class and "shared.weight" in shapes else 0
    classes = 0
    if uses_class:
        key = "shared.weight" if shared else "blocks.0.0.bn1.gain.weight"
        classes = shapes[key][0]
    wide, features = shapes["shared_feat.weight"] if uses_features else (0, 0)
    latent = into
    if chunk:
        latent = into - shared if deep else chunk * (len(blocks) + 1)
    return BigGANLayout(
        blocks=blocks,
        deep=deep,
        bottom=bottom,
        latent=latent,
        chunk=chunk,
        classes=classes,
        shared=shared,
        features=features,
        shared_features=wide,
    )


def _block(shapes: Shapes, number: int, *, deep: bool) -> Block:
    at = f"blocks.{number}.0"
    hidden, inputs = shapes[f"{at}.conv1.weight"][:2]
    outputs = shapes[f"{at}.conv{4 if deep else 2}.weight"][0]
    return Block(
        inputs=inputs,
        outputs=outputs,
        hidden=hidden,
        upsample=number % DEEP_DEPTH == DEEP_DEPTH - 1 if deep else True,
        attention=f"blocks.{number}.1.theta.weight" in shapes,
    )


def _condition(shapes: Shapes, into: int, *, deep: bool) -> tuple[int, bool, bool]:
    """Find what the blocks' normalisation is told, from how wide its input is.

    Returns:
        numbers of z per block (0: none), whether it is told the class, and instance features.
    """
    if "shared.weight" not in shapes and "shared_feat.weight" not in shapes:
        return 0, True, False  # a table of gains per class in every block
    if deep and "shared_feat.weight" in shapes:
        raise ValueError("deep and conditioned on instances, which ic_gan does not make")
    width = shapes["blocks.0.0.bn1.gain.weight"][1]
    label = shapes.get("shared.weight", (0, 0))[1]
    instance = shapes.get("shared_feat.weight", (0, 0))[0]
    # IC-GAN's files hold the class embedding even where it is not used, so what fits decides.
    for uses_features in (True, False) if instance else (False,):
        for chunked in (True, False):
            for uses_class in (False, True) if uses_features else (True,):
                told = uses_class * label + uses_features * instance
                # BigGAN-deep gives the first map and every block the same [class, z].
                part = into - told if deep else into
                if (uses_class or uses_features) and width == told + (part if chunked else 0):
                    return (part if chunked else 0), uses_class, uses_features
    raise ValueError(f"normalisation told {width} numbers: no sum of {label}, {instance}, {into}")

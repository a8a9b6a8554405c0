"""Read the architecture out of a BigGAN generator's state dict.

One reader serves BigGAN and BigGAN-deep (Brock et al. 2019), BigBiGAN's generator in the same
format, and IC-GAN (Casanova et al. 2021). The shapes tell all but what `biggan_flags.py` finds out.
Source: BigGAN-PyTorch and ic_gan, official code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamshard.errors import TeacherError

Shapes = Mapping[str, tuple[int, ...]]
DEEP_DEPTH = 2  # blocks per stage where the stages' widths differ; others do not fit together
CIFAR_STAGES = 3  # of the one deep network whose stages are all of one width, for 32 pixels


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
        chunk: numbers of z that each block gets (hierarchical z; all of them if deep); 0 where only
            the first map does.
        classes: number of classes it is conditioned on, 0 for none.
        shared: width of the class embedding that all blocks share; 0: each has tables of its own.
        features: width of the instance features it is conditioned on (IC-GAN), 0 for none.
        shared_features: width they are brought to.
        additive: whether gains are added instead of multiplied. BigGAN-PyTorch's evaluation does so
            with --cross_replica (its issue 96), whatever the training did.
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
    additive: bool = False

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
        return self.embedded + self.chunk


def read_layout(shapes: Shapes, flags: Mapping[str, Any], *, where: str) -> BigGANLayout:
    """Read the architecture from tensor shapes.

    Args:
        shapes: name -> shape.
        flags: official flags, as far as known; `hier` and `class_cond` decide where shapes do not.
        where: names the file in errors.

    Raises: TeacherError if these are not a BigGAN generator's.
    """
    try:
        return _read(shapes, flags)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(
            f"{where}: not a BigGAN generator of BigGAN-PyTorch ({type(error).__name__}: {error}; "
            f"its keys begin {', '.join(sorted(shapes)[:3])}). Point teacher.path at G_ema*.pth."
        ) from error


def _read(shapes: Shapes, flags: Mapping[str, Any]) -> BigGANLayout:
    deep = "blocks.0.0.conv4.weight" in shapes
    numbers = [int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.0\.conv1\.w", key))]
    if not numbers or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"blocks {sorted(numbers)}, not 0, 1, 2 ...")
    blocks = _blocks(shapes, len(numbers), deep=deep)
    flat, into = shapes["linear.weight"]
    area, rest = divmod(flat, blocks[0].inputs)
    bottom = round(area**0.5)
    if rest or bottom * bottom != area:
        raise ValueError(f"a first map of {flat} values for {blocks[0].inputs} channels")
    chunk, uses_class, uses_features = _condition(shapes, into, flags, deep=deep)
    shared = shapes["shared.weight"][1] if uses_class and "shared.weight" in shapes else 0
    classes = 0
    if uses_class:
        key = "shared.weight" if shared else "blocks.0.0.bn1.gain.weight"
        classes = shapes[key][0]
    wide, features = shapes["shared_feat.weight"] if uses_features else (0, 0)
    latent = into
    if chunk:
        latent = chunk if deep else chunk * (len(blocks) + 1)
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
        additive="blocks.0.0.bn1.bn.running_mean" in shapes and "output_layer.0.gain" in shapes,
    )


def _blocks(shapes: Shapes, count: int, *, deep: bool) -> tuple[Block, ...]:
    last = "conv4" if deep else "conv2"
    sizes = [
        (
            shapes[f"blocks.{number}.0.conv1.weight"][1],
            shapes[f"blocks.{number}.0.{last}.weight"][0],
            shapes[f"blocks.{number}.0.conv1.weight"][0],
        )
        for number in range(count)
    ]
    depth = 1
    if deep:
        alike = len({width for size in sizes for width in size[:2]}) == 1
        depth, rest = divmod(count, CIFAR_STAGES) if alike else (DEEP_DEPTH, count % DEEP_DEPTH)
        if rest:
            raise ValueError(f"{count} blocks, not whole stages")
    return tuple(
        Block(
            *size,
            upsample=number % depth == depth - 1,
            attention=f"blocks.{number}.1.theta.weight" in shapes,
        )
        for number, size in enumerate(sizes)
    )


def _condition(
    shapes: Shapes, into: int, flags: Mapping[str, Any], *, deep: bool
) -> tuple[int, bool, bool]:
    """Find what the blocks' normalisation is told, from how wide its input is.

    Returns:
        numbers of z per block (0: none), whether it is told the class, and instance features.
    """
    if "shared.weight" not in shapes and "shared_feat.weight" not in shapes:
        return 0, True, False  # a table of gains per class in every block
    width = shapes["blocks.0.0.bn1.gain.weight"][1]
    label = shapes.get("shared.weight", (0, 0))[1]
    instance = shapes.get("shared_feat.weight", (0, 0))[0]
    if deep:
        if instance or width != into or into <= label:
            raise ValueError("deep, and not told [class, z], which the official codes do not make")
        return into - label, True, False
    # IC-GAN's files hold the class embedding even where it is not used, so what fits decides.
    fits = [
        (chunked, uses_class, uses_features)
        for uses_features in ((True, False) if instance else (False,))
        for chunked in (True, False)
        for uses_class in ((False, True) if uses_features else (True,))
        if width == uses_class * label + uses_features * instance + chunked * into
        and flags.get("hier") in (None, chunked)
        and (not uses_features or flags.get("class_cond") in (None, uses_class))
    ]
    rest = width - label - into
    if not fits and not instance and rest > 0:
        raise ValueError(
            f"{rest} numbers of an instance told as they are: an IC-GAN trained with G_shared_feat "
            "false, which is not read; take one trained with --G_shared_feat"
        )
    if len(fits) != 1:
        raise ValueError(
            f"{len(fits)} readings of a normalisation told {width} numbers ({label} of a class, "
            f"{instance} of an instance, {into} of z). "
            + ("Give settings.hier and settings.class_cond" if fits else "Is the file whole?")
        )
    chunked, uses_class, uses_features = fits[0]
    return (into if chunked else 0), uses_class, uses_features

"""The architecture of SS-GAN's and SNGAN's residual networks, whatever file it was read from.

Source: Chen et al. 2019, tables 6 and 7; Miyato et al. 2018, tables 3 to 5; torch-mimicry and
compare_gan, official codes, which differ in everything that `GeneratorLayout` and
`DiscriminatorLayout` have a word for.
"""

from __future__ import annotations

from dataclasses import dataclass

UPSAMPLING = ("bilinear", "nearest", "zero_insertion")
"""Ways to double a map: torch-mimicry's (corners not aligned), Miyato's, compare_gan's (a cell and
three zeros)."""
POOLING = ("sum", "mean")
"""Ways to bring a discriminator's last map to a vector: Miyato's and torch-mimicry's,
compare_gan's."""


@dataclass(frozen=True)
class Block:
    """One residual block.

    Args:
        name: in the file, which is that of its tap.
        inputs, hidden, outputs: channels.
        resample: whether it doubles (generator) or halves (discriminator) the map.
        shortcut: kernel of the shortcut's convolution, 0 for none.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    resample: bool
    shortcut: int


@dataclass(frozen=True)
class GeneratorLayout:
    """The architecture of a generator.

    Args:
        blocks: in the order they run.
        latent: numbers of z.
        bottom: height and width of the first map (cells).
        upsample: of `UPSAMPLING`.
        modulation: hidden units of self-modulation from z (0: none between), None for plain batch
            normalisation.
        eps: of the normalisation.
        unsigned: whether images leave a sigmoid, in [0, 1], rather than tanh.
    """

    blocks: tuple[Block, ...]
    latent: int
    bottom: int
    upsample: str
    modulation: int | None
    eps: float
    unsigned: bool

    @property
    def image_size(self) -> int:
        """Return the height and width of the images in pixels."""
        return self.bottom * 2 ** sum(block.resample for block in self.blocks)


@dataclass(frozen=True)
class DiscriminatorLayout:
    """The architecture of a discriminator.

    Args:
        blocks: in the order they run.
        image_size: height and width that it was trained on (pixels).
        pool: of `POOLING`.
        rotations: number of rotations that it tells apart, 0 for none (SNGAN).
        rectified: whether a block's shortcut sees what the ReLU before its first convolution gave.
            torch-mimicry's activations work in place, so that they change the shortcut's input,
            too; its first block has none before its first convolution.
        unsigned: whether it looks at images in [0, 1] rather than [-1, 1].
    """

    blocks: tuple[Block, ...]
    image_size: int
    pool: str
    rotations: int
    rectified: bool
    unsigned: bool

    @property
    def reduction(self) -> int:
        """Return image pixels per cell of the last map."""
        return int(2 ** sum(block.resample for block in self.blocks))

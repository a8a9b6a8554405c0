"""torch-mimicry's files: `netG_*_steps.pth` and `netD_*_steps.pth` with `model_state_dict`.

Generators have `l1`, `block2`, `block3` ... and a last normalisation and convolution `bN`, `cN`;
discriminators `block1`, `block2` ... a linear layer `lN` and, in SS-GAN, `l_y` for rotations.
Widths and latents are free; the shapes tell all but the size that a discriminator was trained on.

Source: torch-mimicry 0.1, `nets/sngan`, `nets/ssgan`, `modules/resblocks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.teachers.gan import spectral
from pipeline.teachers.gan.ssgan.layout import Block, DiscriminatorLayout, GeneratorLayout

Shapes = Mapping[str, tuple[int, ...]]
EPS = 1e-5
"""Of torch's batch normalisation, which torch-mimicry leaves as it is."""
LAYERS = {"c1": "conv1", "c2": "conv2", "c_sc": "shortcut", "b1": "norm1", "b2": "norm2"}
AFFINE = {"weight": "gamma", "bias": "beta"}
SIZES = {(4, 5): 32, (5, 5): 48, (5, 6): 64, (6, 7): 128}
"""(number of blocks, number of the linear layer) -> pixels; other networks are read as if 4 cells
were left after the last block."""
CELLS = 4


def is_discriminator(shapes: Shapes) -> bool:
    """Say whether a file of tensors with these names is a discriminator's; ValueError for neither.

    Args:
        shapes: name -> shape, as stored.
    """
    plain = _plain(shapes)
    if "l1.weight" in plain and "block2.c1.weight" in plain:
        return False
    if "block1.c1.weight" in plain and any(re.fullmatch(r"l\d+\.weight", key) for key in plain):
        return True
    raise ValueError("neither l1 and block2 of a generator nor block1 and lN of a discriminator")


def read_generator(shapes: Shapes, *, upsample: str = "") -> GeneratorLayout:
    """Read a generator's architecture.

    Raises: KeyError or ValueError for shapes that are not one's.
    """
    plain = _plain(shapes)
    if any(".embed." in key or ".sigma" in key or ".gamma" in key for key in plain):
        raise ValueError("conditional normalisation or attention, which SS-GAN does not have")
    numbers = _numbers(plain, first=2)
    blocks = tuple(_block(plain, number, generator=True) for number in numbers)
    flat, latent = plain["l1.weight"]
    bottom = round((flat / blocks[0].inputs) ** 0.5)
    if bottom * bottom * blocks[0].inputs != flat:
        raise ValueError(f"a first map of {flat} values for {blocks[0].inputs} channels")
    if plain[f"c{numbers[-1] + 1}.weight"][0] != 3:
        raise ValueError("images that are not RGB")
    return GeneratorLayout(
        blocks=blocks,
        latent=latent,
        bottom=bottom,
        upsample=upsample or "bilinear",
        modulation=None,
        eps=EPS,
        unsigned=False,
    )


def read_discriminator(shapes: Shapes, *, pool: str = "") -> DiscriminatorLayout:
    """Read a discriminator's architecture.

    Raises: KeyError or ValueError for shapes that are not one's.
    """
    plain = _plain(shapes)
    numbers = _numbers(plain, first=1)
    last = _last_linear(plain)
    # A shortcut has a convolution where the widths differ or the map is halved, so that the last
    # block of equal names is told by the linear layer's number: 48 px have no block's worth left.
    halves = {number: f"block{number}.c_sc.weight" in plain for number in numbers}
    if last == numbers[-1]:
        halves[last] = False
    blocks = tuple(
        _block(plain, number, generator=False, halves=halves[number]) for number in numbers
    )
    reduction = int(2 ** sum(block.resample for block in blocks))
    return DiscriminatorLayout(
        blocks=blocks,
        image_size=SIZES.get((len(blocks), last), CELLS * reduction),
        pool=pool or ("sum" if normalised(shapes) else "mean"),
        rotations=plain.get("l_y.weight", (0,))[0],
        rectified=True,
        unsigned=False,
    )


def normalised(shapes: Shapes) -> bool:
    """Say whether a discriminator's weights have spectral norms; those of WGAN-GP have none."""
    return any(spectral.plain_name(key) is None for key in shapes)


def rename(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Divide spectral norms out and give tensors the names that our modules have.

    Raises: TeacherError for spectral vectors that do not fit.
    """
    plain = spectral.divide(state, where=where)
    renamed = {}
    for name, value in plain.items():
        if name.endswith("num_batches_tracked"):
            continue
        renamed[_own_name(name)] = value.float()
    return renamed


def _own_name(name: str) -> str:
    layer, _, last = name.rpartition(".")
    if match := re.fullmatch(r"(block\d+)\.(\w+)", layer):
        own = LAYERS.get(match[2], match[2])
        last = AFFINE.get(last, last) if own.startswith("norm") else last
        return f"blocks.{match[1]}.{own}.{last}"
    if re.fullmatch(r"b\d+", layer):
        return f"norm.{AFFINE.get(last, last)}"
    if layer == "l1":
        return f"linear.{last}"
    names = {"c": "last", "l": "logit"}
    if match := re.fullmatch(r"([cl])\d+", layer):
        return f"{names[match[1]]}.{last}"
    return f"rotation.{last}" if layer == "l_y" else name


def _plain(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    named = ((spectral.plain_name(key), shape) for key, shape in shapes.items())
    return {key: tuple(shape) for key, shape in named if key is not None}


def _numbers(plain: Shapes, *, first: int) -> list[int]:
    numbers = sorted(int(m[1]) for key in plain if (m := re.match(r"block(\d+)\.c1\.weight", key)))
    if not numbers or numbers != list(range(first, first + len(numbers))):
        raise ValueError(f"blocks {numbers}, not {first}, {first + 1} ...")
    return numbers


def _last_linear(plain: Shapes) -> int:
    numbers = [int(m[1]) for key in plain if (m := re.fullmatch(r"l(\d+)\.weight", key))]
    if len(numbers) != 1:
        raise ValueError(f"{len(numbers)} linear layers lN, not one")
    return numbers[0]


def _block(plain: Shapes, number: int, *, generator: bool, halves: bool = False) -> Block:
    at = f"block{number}"
    hidden, inputs = plain[f"{at}.c1.weight"][:2]
    shortcut = plain.get(f"{at}.c_sc.weight")
    return Block(
        name=at,
        inputs=inputs,
        hidden=hidden,
        outputs=plain[f"{at}.c2.weight"][0],
        # A generator's shortcut is a convolution exactly where its block doubles the map.
        resample=shortcut is not None if generator else halves,
        shortcut=shortcut[-1] if shortcut else 0,
    )

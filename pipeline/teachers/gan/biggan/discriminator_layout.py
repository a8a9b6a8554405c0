"""Read the architecture out of a BigGAN discriminator's state dict, deep or not.

Source: BigGAN-PyTorch, `BigGAN.py` and `BigGANdeep.py` (`D_arch`, `DBlock`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dreamshard.errors import TeacherError
from pipeline.teachers import weights

Shapes = Mapping[str, tuple[int, ...]]
CELLS = 4
"""Cells per side after the last block, in all networks but CIFAR's."""
CIFAR_SIZE, CIFAR_HALVED = 32, 2
"""Pixels, and number of halvings, of networks whose blocks are all of one width."""


@dataclass(frozen=True)
class DBlock:
    """One residual block: channels in, between and out, whether it halves the map, its shortcut.

    `shortcut` counts the channels that a 1x1 convolution makes of the input: all of the output's,
    or, in deep blocks, those that the input lacks; 0 where there is no convolution.
    """

    inputs: int
    hidden: int
    outputs: int
    downsample: bool
    shortcut: int


@dataclass(frozen=True)
class DiscriminatorLayout:
    """The architecture of a discriminator.

    Args:
        stages: blocks in the order they run, grouped as in the file.
        attention: for each stage, whether attention follows its blocks.
        deep: BigGAN-deep's bottleneck blocks after a convolution.
        classes: number of classes whose projection is added to the logit, 0 for none.
        image_size: height and width that it was trained on (pixels).
    """

    stages: tuple[tuple[DBlock, ...], ...]
    attention: tuple[bool, ...]
    deep: bool
    classes: int
    image_size: int

    @property
    def width(self) -> int:
        """Return the channels of the last map."""
        return self.stages[-1][-1].outputs

    @property
    def reduction(self) -> int:
        """Return image pixels per cell of the last map."""
        return int(2 ** sum(block.downsample for stage in self.stages for block in stage))


def read_layout(shapes: Shapes, *, where: str) -> DiscriminatorLayout:
    """Read the architecture from tensor shapes.

    Args:
        shapes: name -> shape.
        where: names the file in errors.

    Raises: TeacherError if these are not a BigGAN discriminator's.
    """
    try:
        return _read(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise TeacherError(
            f"{where}: not a BigGAN discriminator of BigGAN-PyTorch ({type(error).__name__}: "
            f"{error}; its keys begin {', '.join(sorted(shapes)[:3])}). Point teacher.path at "
            "D*.pth."
        ) from error


def _read(shapes: Shapes) -> DiscriminatorLayout:
    deep = "input_conv.weight" in shapes
    at = re.compile(r"blocks\.(\d+)\.(\d+)\.(conv1|theta)\.weight")
    kinds = {(int(m[1]), int(m[2])): m[3] for name in shapes if (m := at.match(name))}
    count = weights.count_numbered(shapes, r"blocks\.(\d+)\.\d+\.(?:conv1|theta)\.weight")
    places: list[list[int]] = [[] for _ in range(count)]
    for stage, number in sorted(kinds):
        places[stage].append(number)
    if any(numbers != list(range(len(numbers))) for numbers in places):
        raise ValueError(f"blocks {sorted(kinds)}, not 0.0, 1.0 ...")
    attention = tuple(kinds[stage, numbers[-1]] == "theta" for stage, numbers in enumerate(places))
    depths = [len(numbers) - attends for numbers, attends in zip(places, attention, strict=True)]
    widths = {
        shapes[f"blocks.{stage}.0.conv{4 if deep else 2}.weight"][0] for stage in range(count)
    }
    cifar = len(widths) == 1
    stages = []
    for stage in range(count):
        blocks = []
        for number in range(depths[stage]):
            name = f"blocks.{stage}.{number}"
            if deep:
                # Stages begin with a halving, which no tensor tells of.
                halves = number == 0 and (not cifar or stage < CIFAR_HALVED)
            else:
                # A shortcut has a convolution where widths differ or the map is halved; the last
                # block, which may widen, never halves.
                halves = f"{name}.conv_sc.weight" in shapes and stage < count - 1
            blocks.append(_block(shapes, name, deep=deep, halves=halves))
        stages.append(tuple(blocks))
    if shapes["linear.weight"] != (1, stages[-1][-1].outputs):
        raise ValueError(f"a linear layer of shape {shapes['linear.weight']}, not to one logit")
    classes = shapes.get("embed.weight", (0, 0))
    projected = classes[1] == stages[-1][-1].outputs and "linear_feat.weight" not in shapes
    reduction = int(2 ** sum(block.downsample for stage in stages for block in stage))
    return DiscriminatorLayout(
        stages=tuple(stages),
        attention=attention,
        deep=deep,
        classes=classes[0] if projected else 0,
        image_size=CIFAR_SIZE if cifar else CELLS * reduction,
    )


def _block(shapes: Shapes, name: str, *, deep: bool, halves: bool) -> DBlock:
    hidden, inputs = shapes[f"{name}.conv1.weight"][:2]
    return DBlock(
        inputs=inputs,
        hidden=hidden,
        outputs=shapes[f"{name}.conv{4 if deep else 2}.weight"][0],
        downsample=halves,
        shortcut=shapes.get(f"{name}.conv_sc.weight", (0,))[0],
    )

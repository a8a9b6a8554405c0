"""The encoder's file: safetensors, made by `convert.py` of the TensorFlow Hub module's variables.

Names, in the order of the computation; F is 64 times the width, kernels are (out, in, h, w):

    stem.weight                      (F, 3, 7, 7), of a RevNet (4 F, 3, 7, 7); a kernel of 3x3, of
                                     encoders of small images, neither halves the map nor has the
                                     maxima after it
    stages.S.U.norm1.*               unit U of stage S, both from 0: three times norm, ReLU,
    stages.S.U.conv1.weight          convolution; 1x1, then 3x3 (which halves the map in the first
    stages.S.U.norm2.*, conv2, ...   unit of stages 1 .. of a ResNet), then 1x1
    stages.S.U.shortcut.weight       1x1, in the first unit of a ResNet's stage
    norm.*                           after the last stage
    head.B.fc1.*, head.B.fc2.*       residual block B of the multilayer perceptron: ReLU, fc1, ReLU,
    head.B.shortcut.*                fc2, added to the block's input or, where widths differ, to the
    head.B.norm1.*, head.B.norm2.*   shortcut's output; norms, if any, come before the ReLUs
    out.weight, out.bias             (2 Z, .), to the mean of z and what softplus makes its
                                     standard deviation of
    crelu.mean, crelu.var            statistics of the pooled features; without them there is no
                                     BN + CReLU feature

Norms have `weight`, `bias`, `mean` and `var`, linear layers `weight` and `bias`. A RevNet's units
change half of the channels by what they make of the other half (f below), and between its stages
the map is averaged 2x2 and widened by zeros, half of them before its channels. Published widths
are 1 for the ResNet and 1, 2 and 4 for the RevNet. The file's metadata say what no tensor tells:
`architecture` (resnet50v2, revnet50), `bn_eps`, `image_size` (pixels) and `last_relu` (true, false:
whether a ReLU comes between the last norm and the pooling).

    revnet unit:  y1 = x1 + f(x2), y2 = x2;  output [y2, y1]

Source: Donahue and Simonyan 2019, section 3 and appendix; Kolesnikov et al. 2019 (the ResNet and
RevNet it uses), whose code has the last ReLU in the ResNet alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dreamshard.errors import TeacherError

Shapes = Mapping[str, tuple[int, ...]]
RESNET, REVNET = "resnet50v2", "revnet50"
ARCHITECTURES = (RESNET, REVNET)
BOTTLENECK = 4
"""Channels of a unit over those of its inner convolutions."""
STEM_REDUCTION = {7: 4, 3: 1}
"""Kernel of the stem -> image pixels per cell of the first stage."""


@dataclass(frozen=True)
class Perceptron:
    """One residual block: numbers in, between and out, a shortcut layer, norms before the ReLUs."""

    inputs: int
    hidden: int
    outputs: int
    shortcut: bool
    norms: bool


@dataclass(frozen=True)
class EncoderLayout:
    """The architecture of an encoder.

    Args:
        reversible: RevNet rather than ResNet.
        filters: F.
        units: number of units per stage.
        head: blocks of the multilayer perceptron.
        latent: numbers of z.
        crelu: whether there are statistics for the BN + CReLU feature.
        eps: of all norms.
        last_relu: whether a ReLU follows the last norm.
        image_size: height and width of the images (pixels).
        stem: kernel of the first convolution.
    """

    reversible: bool
    filters: int
    units: tuple[int, ...]
    head: tuple[Perceptron, ...]
    latent: int
    crelu: bool
    eps: float
    last_relu: bool
    image_size: int
    stem: int = 7

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of each stage's output."""
        return tuple(BOTTLENECK * self.filters * 2**stage for stage in range(len(self.units)))

    @property
    def reduction(self) -> int:
        """Return image pixels per cell of the last stage."""
        return int(self.first_stride * 2 ** (len(self.units) - 1))

    @property
    def first_stride(self) -> int:
        """Return image pixels per cell of the first stage."""
        return STEM_REDUCTION[self.stem]


def read_layout(shapes: Shapes, metadata: Mapping[str, str], *, where: str) -> EncoderLayout:
    """Read the architecture from tensor shapes and the file's metadata.

    Args:
        shapes: name -> shape.
        metadata: of the file.
        where: names the file in errors.

    Raises: TeacherError for another layout, or metadata that are missing or contradict it.
    """
    try:
        return _read(shapes, metadata)
    except (KeyError, IndexError, ValueError) as error:
        raise TeacherError(
            f"{where}: not a BigBiGAN encoder in our layout ({type(error).__name__}: {error}; its "
            f"keys begin {', '.join(sorted(shapes)[:3])}). Make it with "
            "`python -m pipeline.teachers.gan.bigbigan.convert`."
        ) from error


def _read(shapes: Shapes, metadata: Mapping[str, str]) -> EncoderLayout:
    architecture = metadata["architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture}, not {' or '.join(ARCHITECTURES)}")
    reversible, last_relu = architecture == REVNET, metadata["last_relu"]
    if last_relu not in ("true", "false"):
        raise ValueError(f"last_relu {last_relu}, not true or false")
    eps = float(metadata["bn_eps"])
    if not 0 < eps < 1:
        raise ValueError(f"bn_eps {eps}, not above 0 and below 1")
    units = _counts(shapes, r"stages\.(\d+)\.(\d+)\.conv1\.weight")
    filters = shapes["stem.weight"][0] // (BOTTLENECK if reversible else 1)
    if any(f"stages.{stage}.0.shortcut.weight" in shapes for stage in range(len(units))) != (
        not reversible
    ):
        raise ValueError(f"{architecture}, but shortcuts of the other")
    blocks = len({m[1] for name in shapes if (m := re.match(r"head\.(\d+)\.", name))})
    layout = EncoderLayout(
        reversible=reversible,
        filters=filters,
        units=units,
        head=tuple(_perceptron(shapes, number) for number in range(blocks)),
        latent=shapes["out.weight"][0] // 2,
        crelu="crelu.mean" in shapes,
        eps=eps,
        last_relu=last_relu == "true",
        image_size=int(metadata["image_size"]),
        stem=shapes["stem.weight"][-1],
    )
    if layout.stem not in STEM_REDUCTION:
        raise ValueError(f"a stem of {layout.stem}x{layout.stem}, not 7x7 or 3x3")
    if layout.image_size <= 0 or layout.image_size % layout.reduction:
        raise ValueError(f"image_size {layout.image_size}, not a multiple of {layout.reduction}")
    return layout


def _counts(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    units = sorted((int(m[1]), int(m[2])) for name in shapes if (m := re.fullmatch(pattern, name)))
    counts = [
        sum(stage == each for stage, _ in units) for each in range(len({s for s, _ in units}))
    ]
    whole = [(stage, unit) for stage, count in enumerate(counts) for unit in range(count)]
    if not units or units != whole:
        raise ValueError("units that are not numbered 0.0, 0.1 ...")
    return tuple(counts)


def _perceptron(shapes: Shapes, number: int) -> Perceptron:
    hidden, inputs = shapes[f"head.{number}.fc1.weight"]
    return Perceptron(
        inputs=inputs,
        hidden=hidden,
        outputs=shapes[f"head.{number}.fc2.weight"][0],
        shortcut=f"head.{number}.shortcut.weight" in shapes,
        norms=f"head.{number}.norm1.mean" in shapes,
    )

"""Settings of training a StyleGAN2; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config.reads import Table
from dreamshard.errors import Problem

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
SMALLEST = 8


@dataclass(kw_only=True)
class StyleGAN2Config:
    """StyleGAN2-ADA: R1, no path length, no style mixing; discriminator `orig`."""

    reads: ClassVar = (
        Table(
            "augment",
            {
                "none": "",
                "diffaugment": "diffaugment_policies",
                "ada": "ada_target ada_images",
            },
        ),
    )

    channel_base: Count = 8192
    """Channels times side of every resolution, up to channel_max (count)."""
    channel_max: Count = 256
    """Most channels of any resolution (count)."""
    latent: Count = 256
    """Numbers of z and of w (count)."""
    mapping_layers: Count = 2
    """Layers from z to w (count)."""
    lr_generator: Positive = 2.5e-3
    """Learning rate of the generator (Adam)."""
    lr_discriminator: Positive = 2.5e-3
    """Learning rate of the discriminator (Adam)."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.0, 0.99]
    )
    """Adam's decays of both players, 0 .. 1."""
    r1_gamma: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the R1 penalty on real images."""
    r1_every: Count = 16
    """Steps between turns of R1 (count), which weigh as much more."""
    statistics_group: Count = 32
    """Images that a minibatch statistic is taken over (count); must divide the batch, or be
    larger."""
    ema_half_life: Count = 500_000
    """Images after which an older weight counts half in the average (count)."""
    ema_ramp: Annotated[float, Field(ge=0)] = 0.05
    """Half-life at first, as a share of the images seen so far; 0 for the full one at once."""
    augment: Literal["none", "diffaugment", "ada"] = "none"
    """Changes of the images that the discriminator sees: for few images (DiffAugment below about
    ten thousand; ADA gains nothing within ten million images shown)."""
    diffaugment_policies: Annotated[
        list[Literal["color", "translation", "cutout"]], Field(min_length=1)
    ] = field(default_factory=lambda: ["color", "translation", "cutout"])
    """What DiffAugment changes."""
    ada_target: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Mean sign of the scores of real images that ADA keeps, 0 .. 1."""
    ada_images: Count = 500_000
    """Images in which ADA's strength can rise from 0 to 1 (count)."""
    export_discriminator: bool = True
    """Keep the discriminator in the finished file, too."""


def size_problems(side: int, batch_size: int, group: int) -> list[Problem]:
    """List what is wrong with image sizes and groups.

    Args:
        side: `image.size` (pixels).
        batch_size, group: images of a step, and of a minibatch statistic (count).
    """
    problems = []
    if side < SMALLEST or side & (side - 1):
        allowed = f"a power of two from {SMALLEST} up, as StyleGAN2 doubles from 4 pixels"
        near = max(SMALLEST, 1 << max(0, side.bit_length() - 1))
        problems.append(Problem("image.size", str(side), allowed, f"Try --image.size {near}."))
    if batch_size % min(group, batch_size):
        allowed = f"a divisor of batch_size ({batch_size}), or more"
        problems.append(Problem("stylegan2.statistics_group", str(group), allowed))
    return problems

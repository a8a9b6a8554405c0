"""Settings of kind encoder; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config.reads import When
from dreamshard.errors import Problem
from pipeline.teachers.base import Scalar

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
DISCRIMINATOR = "discriminator"
"""Path that stands for the discriminator of the generator's own folder."""


@dataclass(kw_only=True)
class PerceptualConfig:
    """Which frozen network says how alike two images look; none where no path is given."""

    reads: ClassVar = (
        When("with a path", "kind levels settings weight", lambda told: bool(told.path), "path"),
    )

    path: str = ""
    """A student's run, a folder or file of a timm network, a discriminator's, or `discriminator`:
    that of the generator's own folder. Empty: the term is off."""
    kind: str = ""
    """Its teacher.kind; empty: told from the path."""
    levels: list[str] = field(default_factory=list)
    """Levels that are compared; empty: all that have a stride's or depth's alias."""
    settings: dict[str, Scalar] = field(default_factory=dict)
    """Its teacher.settings, such as name for a file of timm's weights."""
    weight: Weight = 1.0
    """Weight of the perceptual distance; 1 in Squeeze-and-Span (eq. 3), whose LPIPS it stands
    for."""


@dataclass(kw_only=True)
class PosthocConfig:
    """A post-hoc encoder: what it finds, from which images it learns, how it is trained."""

    reads: ClassVar = (
        When(
            "with network cifar_resnet18 or auto",
            "width",
            lambda told: told.network in ("auto", "cifar_resnet18"),
            "network",
        ),
        When("with optimizer sgd", "momentum", lambda told: told.optimizer == "sgd", "optimizer"),
        When(
            "with real_share below 1",
            "latent_weight",
            lambda told: told.real_share < 1,
            "real_share",
        ),
    )

    kind: str = ""
    """The generator's teacher.kind: stylegan2 | ssgan | biggan | bigbigan; empty: told from its
    path."""
    settings: dict[str, Scalar] = field(default_factory=dict)
    """Official flags of the generator that its files do not tell, such as BN_eps."""
    latent: Literal["auto", "w", "w_plus", "z"] = "auto"
    """What is found. auto: w of StyleGAN2, whose images vary evenly in it and which needs no class
    to be told, z of others. w_plus: a w for every layer, as Squeeze-and-Span's code has it."""
    network: Literal["auto", "cifar_resnet18", "resnet18", "resnet50"] = "auto"
    """The encoder, with a head of two layers. auto: cifar_resnet18, which keeps the resolution in
    its first stage, up to 64 pixels, resnet18 above."""
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    """Channels of cifar_resnet18's first stage (count)."""
    real_share: Share = 0.0
    """Share of a batch, and weight of its losses, that are real images (source), of which only the
    reconstruction is asked; 0: generated ones alone, 0.5: Squeeze-and-Span's "Syn. & Real"."""
    l1_weight: Weight = 1.0
    """Weight of the mean absolute error of pixels in [-1, 1]; 1 in Squeeze-and-Span (eq. 3)."""
    latent_weight: Weight = 1.0
    """Weight of the mean squared error of latents; 1 in Squeeze-and-Span (lambda of eq. 3)."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """The perceptual distance."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, as Squeeze-and-Span's; adam is faster where there are minutes alone."""
    lr: Positive = 0.01
    """Learning rate of a batch of 256, scaled with the batch and falling along a cosine to 0;
    0.01 is Squeeze-and-Span's, with which batches of 128 have 0.005."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    weight_decay: Weight = 5e-4
    """Of all weights; 5e-4 is Squeeze-and-Span's."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights that become the teacher; 0, as in the paper: the last ones."""
    held_out: Annotated[int, Field(ge=2, le=50_000)] = 256
    """Samples that training never sees, on which errors are told at the end, and as many real
    images where there are real ones, of up to a tenth (count)."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        perceptual = self.perceptual.weight if self.perceptual.path else 0.0
        latent = self.latent_weight if self.real_share < 1 else 0.0
        if self.l1_weight + perceptual + latent == 0:
            return [Problem("l1_weight", "0, as all weights", "a term above 0 to learn from")]
        return []

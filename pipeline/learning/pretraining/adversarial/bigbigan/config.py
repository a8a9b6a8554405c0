"""Settings of BigBiGAN, every row of its ablation among them; each text is its field's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config.reads import When
from dreamshard.errors import Problem

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
ENCODING = ("z", "xz")
"""Scores that look at latents."""


@dataclass(kw_only=True)
class EncoderConfig:
    """The encoder: a ResNet or RevNet, pooled, and a residual multilayer perceptron."""

    architecture: Literal["resnet50v2", "revnet50"] = "resnet50v2"
    """Kind of its units."""
    filters: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Channels of the stem (count; a RevNet's has four times as many): 64 times the width."""
    units: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [3, 4, 6, 3])
    """Units per stage (count): [3, 4, 23, 3] is ResNet-101's."""
    stem: Literal[7, 3] = 7
    """Side of the first kernel: 7 quarters the map before the first stage, 3 (small images) keeps
    it."""
    perceptron: list[Count] = field(default_factory=lambda: [4096, 4096])
    """Widths of the perceptron's residual blocks, of two layers each (count)."""


@dataclass(kw_only=True)
class BigBiGANConfig:
    """BigBiGAN: its networks, scores and optimisers."""

    reads: ClassVar = (
        When("where a score looks at latents", "posterior encoder_rate",
             lambda config: bool(set(config.scores) & set(ENCODING)), "scores"),
    )  # fmt: skip

    scores: Annotated[list[Literal["x", "z", "xz"]], Field(min_length=1)] = field(
        default_factory=lambda: ["x", "z", "xz"]
    )
    """What the discriminator scores: images, latents, pairs. [xz] is BiGAN (no unaries), [x, xz]
    and [z, xz] have one, [x] is a GAN without an encoder."""
    posterior: Literal["stochastic", "deterministic", "uniform"] = "stochastic"
    """What E gives: a draw from a normal distribution; its mean alone; or tanh of it, against
    latents that are uniform in [-1, 1]."""
    generator_side: CountOrNone = 0
    """Side of the generator's and the discriminator's images (pixels), where the encoder's are
    larger; 0: the same."""
    channels: Annotated[int, Field(ge=0)] = 96
    """The generator's multiplier (count); the paper's small ones have 32 and 64."""
    discriminator_channels: Annotated[int, Field(ge=1)] = 96
    """The image discriminator's multiplier (count)."""
    attention: CountOrNone = 64
    """Side of the maps that have self-attention (pixels); 0 for none."""
    latent: Count = 120
    """Numbers of z (count), in as many equal parts as the generator has blocks, and one."""
    shared: Count = 128
    """Width of the one class embedding that all blocks share (count)."""
    width: Count = 2048
    """Width of the discriminators of latents and pairs (count)."""
    blocks: Count = 4
    """Their residual blocks, of two layers each (count)."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder."""
    discriminator_steps: Count = 2
    """Discriminator steps per joint step of generator and encoder (count)."""
    lr: Positive = 5e-5
    """Learning rate of the generator (Adam)."""
    encoder_rate: Positive = 1.0
    """The encoder's learning rate over the generator's; 10 is the paper's better one."""
    discriminator_lr: Positive = 2e-4
    """Learning rate of the discriminators (Adam)."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.0, 0.999]
    )
    """Adam's decay rates."""
    ema: Share = 0.9999
    """Decay of the averaged generator and encoder, which become the teacher; warmed up from 0.1."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        if len(set(self.scores)) != len(self.scores):
            problems.append(Problem("scores", str(self.scores), "each score once"))
        if self.scores == ["z"]:
            hint = "Add xz: by z alone neither network learns of images."
            problems.append(Problem("scores", str(self.scores), "x or xz among them", hint))
        return problems

"""Settings of SS-GAN and its baselines; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config.reads import When
from dreamshard.errors import Problem

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
ROTATING = ("ssgan", "rotation_only")
SIZES = {"mimicry": (32, 64, 128), "compare_gan": (32, 128)}
"""Published networks: variant -> pixels."""


@dataclass(kw_only=True)
class SSGANConfig:
    """SS-GAN: its networks, losses and optimisers."""

    reads: ClassVar = (
        When("where rotations are told apart", "alpha anneal_alpha beta",
             lambda config: config.method in ROTATING, "method"),
        When("with regularisation gradient_penalty", "penalty",
             lambda config: config.regularisation == "gradient_penalty", "regularisation"),
    )  # fmt: skip

    method: Literal["ssgan", "unconditional", "conditional", "rotation_only"] = "ssgan"
    """SS-GAN, or what it is compared with: no rotations; classes by projection and conditional
    normalisation; rotations alone, without an adversarial loss."""
    variant: Literal["mimicry", "compare_gan"] = "mimicry"
    """Whose networks: the paper's own, as torch-mimicry has them (32, 64, 128 px), or compare_gan's
    (32, 128 px), which unpool by inserted zeros, have 3x3 shortcuts, and average the last map.
    Conditional networks are Miyato and Koyama's in BigGAN-PyTorch's layout (32, 64, 128 px)."""
    channels: CountOrNone = 0
    """The generator's width (count): at 32 px of every block, else of the last; 0: as published."""
    discriminator_channels: CountOrNone = 0
    """The discriminator's width (count): at 32 px of every block, else of the first; 0 likewise."""
    latent: Count = 128
    """Numbers of z (count)."""
    modulation: CountOrNone = 0
    """Hidden units of self-modulated batch normalisation (count; published: 32); 0 for plain one.
    Only compare_gan's files can hold it."""
    upsample: Literal["", "bilinear", "nearest", "zero_insertion"] = ""
    """How the generator doubles a map; empty: as the variant does."""
    pool: Literal["", "sum", "mean"] = ""
    """How the discriminator's last map becomes a vector; empty: as the variant does."""
    z_distribution: Literal["", "normal", "uniform"] = ""
    """Of z; empty: as the variant's loader assumes (mimicry normal, compare_gan uniform)."""
    alpha: Weight = 0.2
    """Weight of the rotations of generated images in the generator's loss."""
    anneal_alpha: bool = False
    """Let alpha fall linearly to 0 at the end, which restores the adversarial loss's limit."""
    beta: Weight = 1.0
    """Weight of the rotations of real images in the discriminator's loss."""
    regularisation: Literal["spectral_norm", "gradient_penalty"] = "spectral_norm"
    """Of the discriminator: norms of its weights, or a penalty on its gradient between images."""
    penalty: Weight = 1.0
    """Weight of the gradient penalty."""
    initialisation: Literal["normal", "orthogonal", "xavier"] = "normal"
    """Initial weights: normal with standard deviation .02, orthogonal (scaled-up runs), Xavier."""
    discriminator_steps: Count = 1
    """Discriminator steps per generator step (count)."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Learning rate of both (Adam)."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.0, 0.9]
    )
    """Adam's decay rates."""
    ema: Share = 0.999
    """Decay of the generator's averaged weights, which become the teacher; warmed up from 0.1."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        if self.modulation and (self.variant != "compare_gan" or self.method == "conditional"):
            hint = "Set variant compare_gan."
            got = f"{self.modulation} with variant {self.variant}, method {self.method}"
            problems.append(Problem("modulation", got, "0", hint))
        if self.method == "conditional":
            told = {
                "variant": (self.variant, "mimicry"),
                "upsample": (self.upsample, ""),
                "pool": (self.pool, ""),
                "z_distribution": (self.z_distribution, ""),
                "regularisation": (self.regularisation, "spectral_norm"),
            }
            problems += [
                Problem(key, got or "''", f"{allowed or 'empty'} with method conditional")
                for key, (got, allowed) in told.items()
                if got != allowed
            ]
        return problems

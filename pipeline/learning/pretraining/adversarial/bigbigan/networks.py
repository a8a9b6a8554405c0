"""BigBiGAN's networks, to train: G and F as BigGAN has them by size, E, and the scores' H and J.

Shapes: N images, vectors (N, C). Source: Donahue and Simonyan 2019, appendix A; Brock et al. 2019,
appendix B; BigGAN-PyTorch (`G_arch`, `D_arch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig
from pipeline.teachers.gan.bigbigan.layout import BOTTLENECK, REVNET, EncoderLayout, Perceptron
from pipeline.teachers.gan.bigbigan.network import Encoded, ResidualPerceptron
from pipeline.teachers.gan.biggan.discriminator_layout import DBlock, DiscriminatorLayout
from pipeline.teachers.gan.biggan.discriminator_network import BigGANDiscriminator
from pipeline.teachers.gan.biggan.layout import BigGANLayout, Block

BOTTOM = 4
"""Cells per side of the generator's first map."""
EPS = 1e-4
"""Of all norms, and of spectral norms: what the loader assumes of every BigBiGAN."""
UP = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
"""Pixels -> the generator's widths over its multiplier: its first map's, then each block's."""
DOWN = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
"""Pixels -> the image discriminator's widths over its multiplier."""
CIFAR, CIFAR_HALVINGS = 32, 2


def generator_layout(config: BigBiGANConfig, side: int) -> BigGANLayout:
    """Describe G for images of a side (pixels).

    Raises: ConfigError: a side without a published network, or z that does not divide.
    """
    if side not in UP:
        key = "bigbigan.generator_side" if config.generator_side else "image.size"
        allowed = ", ".join(map(str, UP))
        raise ConfigError(Problem(key, str(side), f"{allowed} (BigGAN's networks)"))
    widths = [each * config.channels for each in UP[side]]
    blocks = len(widths) - 1
    chunk, rest = divmod(config.latent, blocks + 1)
    if rest:
        allowed = f"a multiple of {blocks + 1} (parts for the first map and for {blocks} blocks)"
        raise ConfigError(Problem("bigbigan.latent", str(config.latent), allowed))
    return BigGANLayout(
        blocks=tuple(
            Block(
                inputs,
                outputs,
                outputs,
                upsample=True,
                attention=BOTTOM * 2 ** (number + 1) == config.attention,
            )
            for number, (inputs, outputs) in enumerate(pairwise(widths))
        ),
        deep=False,
        bottom=BOTTOM,
        latent=config.latent,
        chunk=chunk,
        classes=1,
        shared=config.shared,
        features=0,
        shared_features=0,
    )


def image_layout(config: BigBiGANConfig, side: int) -> DiscriminatorLayout:
    """Describe F for images of a side (pixels), which `generator_layout` has found published."""
    widths = [each * config.discriminator_channels for each in DOWN[side]]
    halvings = CIFAR_HALVINGS if side == CIFAR else len(widths) - 1
    stages, attention, cells = [], [], side
    for number, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
        halves = number < halvings
        cells //= 2 if halves else 1
        shortcut = outputs if halves or inputs != outputs else 0
        stages.append((DBlock(inputs, outputs, outputs, downsample=halves, shortcut=shortcut),))
        attention.append(halves and cells == config.attention)
    return DiscriminatorLayout(
        stages=tuple(stages), attention=tuple(attention), deep=False, classes=0, image_size=side
    )


def encoder_layout(config: BigBiGANConfig, side: int) -> EncoderLayout:
    """Describe E for images of a side (pixels).

    Raises: ConfigError: images that its stages cannot halve often enough.
    """
    told = config.encoder
    reversible = told.architecture == REVNET
    now = BOTTLENECK * told.filters * 2 ** (len(told.units) - 1)
    head = []
    for hidden in told.perceptron:
        head.append(Perceptron(now, hidden, hidden, shortcut=now != hidden, norms=False))
        now = hidden
    layout = EncoderLayout(
        reversible=reversible,
        filters=told.filters,
        units=tuple(told.units),
        head=tuple(head),
        latent=config.latent,
        crelu=True,
        eps=EPS,
        last_relu=not reversible,
        image_size=side,
        stem=told.stem,
    )
    if side % layout.reduction:
        allowed = f"a multiple of {layout.reduction} for the encoder (bigbigan.encoder)"
        raise ConfigError(Problem("image.size", str(side), allowed))
    return layout


class Scores(nn.Module):
    """Score images, latents and pairs: F, H and J with a linear layer each.

    Args:
        layout: of F, whose own linear layer is the score of images.
        latent: numbers of z.
        width, blocks: of H and J, residual perceptrons.
        scores: names of those there are.
    """

    def __init__(
        self,
        layout: DiscriminatorLayout,
        *,
        latent: int,
        width: int,
        blocks: int,
        scores: Sequence[str],
    ) -> None:
        super().__init__()
        self.scores = tuple(scores)
        if set(scores) - {"z"}:
            self.images = BigGANDiscriminator(layout)
        if set(scores) - {"x"}:
            self.latents = _perceptron(latent, width, blocks)
        if "z" in scores:
            self.score_z = nn.Linear(width, 1)
        if "xz" in scores:
            self.pairs = _perceptron(layout.width + width, width, blocks)
            self.score_xz = nn.Linear(width, 1)

    def forward(self, images: Tensor, latents: Tensor | None) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) in [-1, 1] and latents (N, Z) to a score (N, 1) by name."""
        scores: dict[str, Tensor] = {}
        seen = self.images.pooled(images)
        if "x" in self.scores:
            scores["x"] = self.images.linear(seen)
        if latents is None:
            return scores
        told = self.latents(latents)
        if "z" in self.scores:
            scores["z"] = self.score_z(F.relu(told))
        if "xz" in self.scores:
            scores["xz"] = self.score_xz(F.relu(self.pairs(torch.cat([seen, told], dim=1))))
        return scores

    def own_layers(self) -> list[nn.Linear]:
        """List the linear layers that F's official network has and these scores do not use."""
        return [] if "x" in self.scores else [cast(nn.Linear, self.images.linear)]


def latent_of(encoded: Encoded, posterior: str, noise: Tensor | None) -> Tensor:
    """Return z (N, Z) of what the encoder gave.

    Args:
        encoded: mean and standard deviation.
        posterior: stochastic: mean + deviation * noise (the mean where there is none);
            deterministic: the mean; uniform: its tanh.
        noise: standard normal (N, Z), or None.
    """
    if posterior == "uniform":
        return torch.tanh(encoded.mean)
    if posterior == "deterministic" or noise is None:
        return encoded.mean
    return encoded.mean + encoded.stdev * noise


def side_of(images: Tensor, side: int) -> Tensor:
    """Average images (N, 3, H, W) down to a side (pixels) that divides theirs."""
    factor = images.shape[-1] // side
    return images if factor == 1 else F.avg_pool2d(images, factor)


def _perceptron(inputs: int, width: int, blocks: int) -> nn.Sequential:
    sizes = [inputs, *[width] * blocks]
    return nn.Sequential(
        *(
            ResidualPerceptron(Perceptron(a, width, b, shortcut=a != b, norms=False), EPS)
            for a, b in pairwise(sizes)
        )
    )
